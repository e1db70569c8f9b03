"""A vLLM server as a child process: `vllm serve` with our guard, ended with all it started."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from mmrl.errors import ConfigError
from mmrl.rollout.vllm_arguments import SPLITS
from mmrl.rollout.vllm_guard import TOKEN

LOOPBACK = ("127.0.0.1", "localhost", "::1")
GRACE_S = 5.0
"""A server that is told to end removes what it holds in shared memory, if it can."""
INTERVAL_S = 0.05


class ServerProcess:
    """A server on this machine.

    Args:
        arguments: of vLLM's engine.
        log: file that its output is appended to; its configuration is written beside it.
        devices: CUDA_VISIBLE_DEVICES; None leaves the trainer's.
    """

    def __init__(self, arguments: Mapping[str, Any], token: str, log: Path, devices: str | None) -> None:
        self.log = log
        port = free_port()
        self.url = f"http://{LOOPBACK[0]}:{port}"
        command = serve_command(arguments, LOOPBACK[0], port, log.with_suffix(".yaml"))
        environment = serve_environment(token)
        if devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = devices
        self._lock = threading.RLock()
        with log.open("ab") as output:
            self._begin = output.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mmrl.rollout.vllm_watch", str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def ended(self) -> bool:
        """It stays a zombie until `end`: its number, which names the group, can be nobody else's so long."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        with self._lock:
            return self.process.returncode is not None or os.waitid(os.P_PID, self.process.pid, options) is not None

    def end(self) -> None:
        """End its whole group: workers outlive a server that was killed."""
        with self._lock:
            if self.process.returncode is not None:
                return
            os.killpg(self.process.pid, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S
            while not self.ended() and time.monotonic() < deadline:
                time.sleep(INTERVAL_S)
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def ending(self) -> str:
        """How it ended, with the last line of its log that looks like an error."""
        self.end()
        with self.log.open(errors="replace") as log:
            log.seek(self._begin)
            found = [line.strip() for line in log if "Error" in line or "error:" in line]
        return f"ended with code {self.process.returncode}: {found[-1][:300] if found else 'no error in its log'}"


def serve_command(arguments: Mapping[str, Any], host: str, port: int, file: Path) -> list[str]:
    """The command that starts a server; its arguments are written to a YAML file."""
    values = {
        "disable_uvicorn_access_log": True,
        **arguments,
        "enable_scale_out": True,  # the path that takes and gives tokens
        "api_server_count": 1,  # of several, each would have caches of its own to reset
        "middleware": "mmrl.rollout.vllm_guard.Guard",
        "host": host,
        "port": port,
    }
    # vLLM finds the "no" form of a switch by its name with dashes only.
    named = {key.replace("_", "-"): value for key, value in values.items() if value is not None}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(named))
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", "--config", str(file)]


def serve_environment(token: str | None) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != TOKEN}
    environment["VLLM_SERVER_DEV_MODE"] = "1"  # the paths that take weights and reset caches
    return environment | ({TOKEN: token} if token else {})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK[0], 0))
        return int(probe.getsockname()[1])


def devices_of(number: int, arguments: Mapping[str, Any], first: int) -> str | None:
    """CUDA_VISIBLE_DEVICES of server `number`: behind the trainer's, as many as it is split over."""
    if not torch.cuda.is_available():
        return None
    each = math.prod(int(arguments.get(key, 1)) for key in SPLITS)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
    return place(names, number, each, first)


def place(names: list[str], number: int, each: int, first: int) -> str:
    """Names of the devices of server `number`; ConfigError where there are too few."""
    at = first + number * each
    if at + each > len(names):
        raise ConfigError(
            f"rollout.servers: server {number} wants GPUs {at} to {at + each - 1}, and {len(names)} are visible; "
            "lower rollout.servers.count, or set rollout.servers.first_device (0 shares the trainer's)"
        )
    return ",".join(names[at : at + each])
