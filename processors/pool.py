"""Workers that decode media: started when needed, reused, killed when they take too long."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import mmrl
from mmrl.errors import ConfigError, MediaError
from mmrl.processors import wire

START_S = 120.0
"""A worker that is not ready by then is broken."""
MAX_IDLE = 8
"""Workers that are kept for later calls."""


class Worker:
    """One process, for one call at a time."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        path = os.pathsep.join(filter(None, [str(Path(mmrl.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mmrl.processors.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # signals to the group of the parent are not for it
            )

    def wait_until_ready(self) -> None:
        """ConfigError where it does not come up: then no medium could be decoded."""
        try:
            wire.receive(self.socket, time.monotonic() + START_S)
        except (OSError, EOFError):
            raise ConfigError(f"the decoding worker does not start ({self.end(5.0)}); run mmrl doctor") from None

    def end(self, patience_s: float = 0.0) -> str:
        """Let it end, or kill it; returns how it ended."""
        self.socket.close()
        try:
            code = self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        with self.errors:
            self.errors.seek(0)
            lines = self.errors.read()[-10_000:].decode(errors="replace").strip().splitlines()
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"{how}: {lines[-1][:200]}" if lines else how


class Pool:
    """Idle workers. Safe to use from several threads; a forked process starts with none."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[Worker] = []
        self.lent: weakref.WeakSet[Worker] = weakref.WeakSet()

    def take(self) -> tuple[Worker, bool]:
        """(an idle worker, False) or (a new one, True)."""
        with self.lock:
            fresh = not self.idle
            worker = Worker() if fresh else self.idle.pop()
            self.lent.add(worker)
        if fresh:
            worker.wait_until_ready()
        return worker, fresh

    def give(self, worker: Worker) -> None:
        """Keep a worker for the next call."""
        with self.lock:
            self.lent.discard(worker)
            if len(self.idle) < MAX_IDLE:
                self.idle.append(worker)
                return
        worker.end(1.0)

    def close(self) -> None:
        """End all idle workers."""
        with self.lock:
            idle, self.idle = self.idle, []
        for worker in idle:
            worker.end(1.0)

    def end(self) -> None:
        """End all workers. Those at work too: a thread that still waits for one holds up no exit."""
        self.close()
        with self.lock:
            lent = list(self.lent)
        for worker in lent:
            worker.process.kill()

    def forget(self) -> None:
        """In a forked child: the workers are the parent's."""
        self.lock = threading.Lock()
        for worker in self.idle:
            worker.socket.close()
            worker.process.returncode = 0  # not ours to wait for
        self.idle, self.lent = [], weakref.WeakSet()


POOL = Pool()
atexit.register(POOL.end)
os.register_at_fork(after_in_child=POOL.forget)


def call(
    request: dict[str, Any], file: BinaryIO | None, *, timeout_s: float, what: str
) -> Iterator[tuple[dict[str, Any], bytearray]]:
    """The replies of a worker to one request; MediaError, beginning with `what`, if it refuses, hangs or dies."""
    worker = _begin({**request, "timeout_s": timeout_s}, file, what)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            header, payload, _ = wire.receive(worker.socket, deadline)
            if "done" in header or "error" in header:
                break
            yield header, payload
    except TimeoutError:
        worker.end()
        raise MediaError(f"{what}: decoding took over {timeout_s:g} s and was stopped; replace the file") from None
    except (EOFError, OSError):
        raise MediaError(f"{what}: the decoder crashed ({worker.end(5.0)}); replace the file") from None
    except BaseException:  # also GeneratorExit: a worker with half an answer is of no further use
        with contextlib.suppress(OSError, ValueError):
            worker.end()
        raise
    POOL.give(worker)
    if "error" in header:
        raise MediaError(f"{what}: {header['error']}")


def _begin(request: dict[str, Any], file: BinaryIO | None, what: str) -> Worker:
    """A worker that has taken the request and imported what it needs; one that died while idle is replaced."""
    while True:
        worker, fresh = POOL.take()
        try:
            wire.send(worker.socket, request, file=file)
            wire.receive(worker.socket, time.monotonic() + START_S)
        except (EOFError, OSError):
            how = worker.end(5.0)
            if fresh:
                raise MediaError(f"{what}: the decoder crashed ({how}); replace the file") from None
        else:
            return worker
