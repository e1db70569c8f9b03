"""Peak memory of a stretch of work: of the process on a CPU, of torch's allocator on a GPU."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch


class HostMemory:
    """Resident memory of this process and its high-water mark (Linux)."""

    def now(self) -> int:
        return _status("VmRSS")

    def reset(self) -> None:
        """Forget the mark. What was freed is first given back, so that it does not count as used."""
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        return _status("VmHWM")


class DeviceMemory:
    """Memory that torch holds on the GPU."""

    def now(self) -> int:
        return torch.cuda.memory_allocated()

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()


def _status(key: str) -> int:
    """Bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}: memory is measured on Linux only")
