"""Features that engines of other processes read: a folder in memory, a file for each run of media tokens.

The layout is that of vLLM's ECExampleConnector: NAME/encoder_cache.safetensors with one tensor "ec_cache" (tokens, D).
A file stays as long as an open episode refers to it.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from mmrl.cache.features import FeatureCache
from mmrl.types import Media

MEMORY = Path("/dev/shm")


class SharedFeatures:
    """One trainer's folder.

    Args:
        folder: where engines on other machines see it too; None is a new one in this machine's memory.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.own = folder is None
        self.folder = Path(folder) if folder else new_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.bytes_written = 0
        self._holders: defaultdict[str, set[str]] = defaultdict(set)

    def holds(self, name: str) -> bool:
        return name in self._holders

    def put(self, name: str, features: torch.Tensor) -> None:
        """Write features (tokens, D) under a name; whoever reads them sees all of them or none."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        part = folder / "part"
        save_file({"ec_cache": features.detach().cpu().contiguous()}, part)
        part.chmod(0o644)  # safetensors writes for its owner only; a server may run as another user
        part.replace(folder / "encoder_cache.safetensors")
        self.bytes_written += features.nbytes

    def hold(self, name: str, episode: str) -> None:
        self._holders[name].add(episode)

    def release(self, episode: str) -> None:
        """Remove what no other open episode refers to."""
        for name in [name for name, holders in self._holders.items() if episode in holders]:
            self._holders[name].discard(episode)
            if not self._holders[name]:
                self.remove(name)

    def remove(self, name: str) -> None:
        self._holders.pop(name, None)
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def close(self) -> None:
        """Remove what was written."""
        for name in list(self._holders):
            self.remove(name)
        if self.own:
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Rows of a medium's features that stand together in a prompt."""

    medium: Media
    start: int
    length: int


class Publisher:
    """Encodes what episodes show and writes it where engines read it. What is asked for at a time is encoded together,
    beside the event loop."""

    def __init__(self, features: FeatureCache, shared: SharedFeatures) -> None:
        self.features, self.shared = features, shared
        self._asked: dict[str, Run] = {}
        self._done: dict[str, asyncio.Future[None]] = {}
        """Of everything that is asked for or being written."""
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1)

    async def publish(self, runs: Mapping[str, Run], episode: str) -> None:
        """Return when all runs, by their names, can be read; they stay until the episode is released."""
        loop = asyncio.get_running_loop()
        for name, run in runs.items():
            if not self.shared.holds(name):
                self._asked[name], self._done[name] = run, loop.create_future()
            self.shared.hold(name, episode)
        if self._asked and (self._task is None or self._task.done()):
            self._task = loop.create_task(self._work())
        await asyncio.gather(*(self._done[name] for name in runs if name in self._done))

    async def _work(self) -> None:
        await asyncio.sleep(0)  # siblings and others of this turn ask now
        while self._asked:
            runs, self._asked = self._asked, {}
            error = None
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._write, runs)
            except Exception as failure:  # costs the episodes that wait for it
                error = failure
            for name in runs:
                self._settle(name, error)

    def _settle(self, name: str, error: Exception | None) -> None:
        done = self._done.pop(name)
        if error is None:
            done.set_result(None)
        else:
            self.shared.remove(name)
            done.set_exception(error)

    def _write(self, runs: Mapping[str, Run]) -> None:
        features = self.features.encode(run.medium for run in runs.values())
        for name, run in runs.items():
            self.shared.put(name, features[run.medium.key][run.start : run.start + run.length])


def new_folder() -> Path:
    """A folder that names this process; those of processes that were killed are removed."""
    root = MEMORY if MEMORY.is_dir() else Path(tempfile.gettempdir())
    for old in root.glob("mmrl-*"):
        found = re.fullmatch(r"mmrl-(\d+)-.*", old.name)
        if found and not Path("/proc", found[1]).exists():
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"mmrl-{os.getpid()}-", dir=root))
