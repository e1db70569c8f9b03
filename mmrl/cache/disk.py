"""Features on disk, between runs and across processes: one file each, under a name that says what it depends on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

import mmrl
from mmrl.protocols import ModelFamily

MANIFEST = "manifest.json"
FORMAT = {"format": "mmrl features", "format_version": 1}
"""The version also stands for how families turn media into features: raise it where that changes."""
SCAN_SHARE = 1 / 20
"""Share of its limit that a process writes before it looks at the folder's size again."""
STALE_S = 3600.0
"""Age at which an unfinished file is that of a process that died."""
FINISHED = re.compile(r"[0-9a-f]{64}\.safetensors")
UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.tmp")


class DiskTier:
    """Features by key, in a folder that processes may share.

    Whatever is wrong with a file costs an encoding. A folder that is no cache is left alone, and one that cannot be
    written is read only; `tell` is told so, once.

    Args:
        limit_bytes: of all features in the folder, whatever their version; the least recently used go first. Each
            process that writes may go beyond it by `SCAN_SHARE`.
        version: what features depend on beside their medium, see `tower_version`.
    """

    def __init__(self, folder: Path, limit_bytes: int, version: str, *, tell: Callable[[str], None] = print) -> None:
        self.folder, self.limit_bytes, self.version, self.tell = folder, limit_bytes, version, tell
        self.reads = self.writes = self._open()
        self._unseen_bytes = limit_bytes
        """Written since the last look at the folder's size; before the first, any number."""

    def get(self, key: str) -> torch.Tensor | None:
        """The features, on the CPU; None where they are not held whole and sound."""
        if not self.reads:
            return None
        path = self._path(key)
        try:
            held = load(path.read_bytes())
            features = held["features"]
            sound = torch.equal(held["check"], _check(path.name, features))
        except Exception:  # missing, removed on the way, cut short, or anything else that a folder may hold
            return None
        with contextlib.suppress(OSError):  # a folder that is only read keeps no order
            os.utime(path)
        return features if sound else None

    def put(self, key: str, features: torch.Tensor) -> None:
        if not self.writes or features.nbytes > self.limit_bytes:
            return
        path = self._path(key)
        features = features.detach().cpu().contiguous()
        try:
            self._write(path, save({"features": features, "check": _check(path.name, features)}))
            self._unseen_bytes += features.nbytes
            if self._unseen_bytes > self.limit_bytes * SCAN_SHARE:
                self._unseen_bytes = 0
                evict(self.folder, self.limit_bytes)
        except OSError as error:
            self.writes = False
            self.tell(f"cache.folder {self.folder}: features are no longer written there ({error})")

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(f"{self.version} {key}".encode()).hexdigest()
        return self.folder / f"{name}.safetensors"

    def _open(self) -> bool:
        """Take a folder that is new, empty, or a cache of this format."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if all(UNFINISHED.fullmatch(name) for name in os.listdir(self.folder)):
                made_by = {"made_by": f"mmrl {mmrl.__version__}"}
                self._write(self.folder / MANIFEST, json.dumps(FORMAT | made_by).encode())
            if not is_cache(self.folder):
                raise OSError(f"its {MANIFEST} is not that of features of format {FORMAT['format_version']}")
        except OSError as error:
            self.tell(f"cache.folder {self.folder}: not used ({error}); name a new folder, or one of an earlier run")
            return False
        return True

    def _write(self, path: Path, data: bytes) -> None:
        """Written aside and renamed, so that a reader sees all of a file or none of it."""
        aside = self.folder / f".{uuid.uuid4().hex}.tmp"
        try:
            aside.write_bytes(data)
            os.replace(aside, path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise


def is_cache(folder: Path) -> bool:
    """Whether the folder's manifest is that of a cache of this format."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and {name: manifest.get(name) for name in FORMAT} == FORMAT


def evict(folder: Path, limit_bytes: int) -> None:
    """Remove the least recently used features beyond the limit, and what processes that died left unfinished.

    Other processes may do the same at once, so that files vanish on the way.
    """
    now, held = time.time(), []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                if FINISHED.fullmatch(entry.name):
                    held.append((found.st_mtime_ns, found.st_size, entry.path))
                elif UNFINISHED.fullmatch(entry.name) and now - found.st_mtime > STALE_S:
                    os.unlink(entry.path)
    excess = sum(size for _, size, _ in held) - limit_bytes
    for _, size, path in sorted(held):
        if excess <= 0:
            return
        Path(path).unlink(missing_ok=True)
        excess -= size


def tower_version(model: Any, family: ModelFamily) -> str:
    """Digest of what features depend on beside their medium: how it is shown, and the towers' code and weights."""
    towers = family.towers(model)
    # A tower's configuration holds what its weights do not (windows, levels), and the version of transformers.
    found: list[Any] = [getattr(tower, "config", None) for tower in towers]
    configs = [config.to_json_string() for config in found if config is not None]
    digest = hashlib.sha256(repr((type(family).__name__, family.media_settings(), configs)).encode())
    for number, tower in enumerate(towers):
        for name, tensor in (*tower.named_parameters(), *tower.named_buffers()):
            digest.update(f"{number} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def _check(name: str, features: torch.Tensor) -> torch.Tensor:
    """(32,) uint8 digest of what a file holds, and of its name: the file of another medium is no match."""
    digest = hashlib.sha256(f"{name} {features.dtype} {tuple(features.shape)}".encode())
    digest.update(_bytes(features))
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's own bytes, of any dtype."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
