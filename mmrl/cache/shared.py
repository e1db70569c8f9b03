"""Features that engines of other processes read: a folder in memory, a file for each run of media tokens.

The layout is that of vLLM's ECExampleConnector: NAME/encoder_cache.safetensors with one tensor "ec_cache" (tokens, D).
A file stays as long as an open episode refers to it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mmrl.cache.features import FeatureCache
from mmrl.errors import MmrlError
from mmrl.types import Media

MEMORY = Path("/dev/shm")


class SharedFeatures:
    """One trainer's files in a folder. What trainers left there that were killed is removed.

    Args:
        folder: where engines on other machines see it too, and other trainers may write; None is a new one in this
            machine's memory.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.own = folder is None
        self.folder = Path(folder) if folder else new_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        self.run = secrets.token_hex(4)
        """Names of files that are ours start with it and a dot."""
        self._lock = os.open(self.folder / f"{self.run}.lock", os.O_CREAT | os.O_WRONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.bytes_written = 0
        self._holders: defaultdict[str, set[str]] = defaultdict(set)

    def holds(self, name: str) -> bool:
        return name in self._holders

    def put(self, name: str, features: torch.Tensor) -> None:
        """Write features (tokens, D) under a name; whoever reads them sees all of them or none."""
        folder = self.folder / name
        part = folder / "part"
        try:
            folder.mkdir(exist_ok=True)
            save_file({"ec_cache": features.detach().cpu().contiguous()}, part)
            part.chmod(0o644)  # safetensors writes for its owner only; a server may run as another user
            part.replace(folder / "encoder_cache.safetensors")
        except (OSError, SafetensorError) as error:
            raise MmrlError(
                f"{self.folder}: {features.nbytes / 2**20:.1f} MiB of features cannot be written ({error}); make room, "
                "or name another folder in rollout.folder"
            ) from None
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
        remove_run(self.folder, self.run)
        os.close(self._lock)
        if self.own:
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Rows of a medium's features that stand together in a prompt."""

    medium: Media
    start: int
    length: int


class Publisher:
    """Encodes what episodes show and writes it where engines read it. What is asked for at a time is encoded together,
    beside the event loop."""

    def __init__(self, features: FeatureCache, shared: SharedFeatures) -> None:
        self.features, self.shared = features, shared
        self._asked: dict[str, Slice] = {}
        self._done: dict[str, asyncio.Future[None]] = {}
        """Of everything that is asked for or being written."""
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="features")

    async def publish(self, wanted: Mapping[str, Slice], episode: str) -> None:
        """Return when all slices, by their names, can be read; they stay until the episode is released."""
        loop = asyncio.get_running_loop()
        for name, slice_ in wanted.items():
            if not self.shared.holds(name):
                self._asked[name], self._done[name] = slice_, loop.create_future()
            self.shared.hold(name, episode)
        if self._asked and (self._task is None or self._task.done()):
            self._task = loop.create_task(self._work())
        waiting = [self._done[name] for name in wanted if name in self._done]
        if waiting:
            await asyncio.wait(waiting)  # who is cancelled does not cancel what siblings wait for
        for done in waiting:
            done.result()

    def close(self) -> None:
        self._thread.shutdown()

    async def _work(self) -> None:
        try:
            await asyncio.sleep(0)  # siblings and others of this turn ask now
            while self._asked:
                wanted, self._asked = self._asked, {}
                errors = await asyncio.get_running_loop().run_in_executor(self._thread, self._write, wanted)
                for name in wanted:
                    self._settle(name, errors.get(name))
        except asyncio.CancelledError:
            self._forget()
            raise

    def _settle(self, name: str, error: Exception | None) -> None:
        done = self._done.pop(name)
        if error is not None:
            self.shared.remove(name)
        if done.done():  # whoever waited was cancelled
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def _forget(self) -> None:
        """Nobody waits any more: what is not written is as if it had not been asked for."""
        self._thread.submit(lambda: None).result()  # what is being written is finished first
        for name in self._done:
            self.shared.remove(name)
        self._asked.clear()
        self._done.clear()

    def _write(self, wanted: Mapping[str, Slice]) -> dict[str, Exception]:
        """What went wrong, by name: it costs the episodes that wait for it."""
        together: dict[str, torch.Tensor] = {}
        with suppress(Exception):  # then each by itself, for the one that fails
            together = self.features.encode(slice_.medium for slice_ in wanted.values())
        errors: dict[str, Exception] = {}
        for name, slice_ in wanted.items():
            try:
                found = together or self.features.encode([slice_.medium])
                self.shared.put(name, found[slice_.medium.key][slice_.start : slice_.start + slice_.length])
            except Exception as error:
                errors[name] = error
        return errors


def new_folder() -> Path:
    root = MEMORY if MEMORY.is_dir() else Path(tempfile.gettempdir())
    for old in root.glob("mmrl-*"):
        if sweep(old) and not any(old.glob("*.lock")):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix="mmrl-", dir=root))


def sweep(folder: Path) -> bool:
    """Remove the files of trainers that have ended, whose locks nobody holds; True where there were any."""
    found = False
    for lock in folder.glob("*.lock"):
        with suppress(OSError), lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_run(folder, lock.stem)
            found = True
    return found


def remove_run(folder: Path, run: str) -> None:
    """Everything that one trainer wrote, its lock last."""
    for path in folder.glob(f"{run}.*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
    (folder / f"{run}.lock").unlink(missing_ok=True)
