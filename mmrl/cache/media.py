"""Decoded media by where they come from and how they are shown: what is asked for again is not decoded again."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from typing import Any

from mmrl.errors import MediaError
from mmrl.protocols import Processor, Traced
from mmrl.types import Media, MediaKind, MediaRef

Key = tuple[Any, ...]


class MediaCache:
    """The most recently used media, up to `limit` bytes of pixels and samples. Threads may share it.

    Processors are frozen dataclasses, so that two of equal fields show a file alike.
    """

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.num_bytes = 0
        """Held now."""
        self._media: OrderedDict[Key, Media] = OrderedDict()
        self._loading: dict[Key, Future[Media]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._media)

    def load(self, processor: Processor, ref: MediaRef) -> Media:
        """`processor.load(ref)`; threads that ask for the same at once wait for one decoding."""
        key = (processor, ref, stamp(ref))
        with self._lock:
            if key in self._media:
                self._media.move_to_end(key)
                return self._media[key]
            is_first = key not in self._loading
            loading = self._loading.setdefault(key, Future())
        if not is_first:
            return loading.result()
        try:
            found = processor.load(ref)
        except BaseException as error:
            self._finish(key)
            loading.set_exception(error)
            raise
        self._finish(key, found)
        loading.set_result(found)
        return found

    def _finish(self, key: Key, found: Media | None = None) -> None:
        with self._lock:
            del self._loading[key]
            if found is None:
                return
            self._media[key] = found
            self.num_bytes += size(found)
            while self.num_bytes > self.limit:
                self.num_bytes -= size(self._media.popitem(last=False)[1])

    def clear(self) -> None:
        """Forget everything: files may have changed."""
        with self._lock:
            self._media.clear()
            self.num_bytes = 0


def stamp(ref: MediaRef) -> tuple[int, ...]:
    """What changes when a file is written anew; nothing for what is no file."""
    if ref.path is None:
        return ()
    try:
        found = os.stat(os.path.join(ref.root or ".", ref.path))
    except (OSError, ValueError):
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def size(medium: Media) -> int:
    """Bytes of a medium's pixels or samples."""
    original = 0 if medium.original is None or medium.original is medium.data else medium.original.nbytes
    return medium.data.nbytes + original


SHARED = MediaCache()
"""The process's cache: rows and tools look at the same files."""


class MediaLoader:
    """Loads media of every kind, each by the processor of its kind."""

    def __init__(self, processors: Mapping[MediaKind, Processor], cache: MediaCache = SHARED) -> None:
        self.processors, self.cache = processors, cache

    def load(self, ref: MediaRef) -> Media:
        """MediaError where the medium cannot be shown to a model."""
        if ref.kind not in self.processors:
            raise MediaError(f"{ref.kind} {ref.path}: nothing is configured that loads it; set data.{ref.kind}")
        return self.cache.load(self.processors[ref.kind], ref)

    def provenance(self, kinds: Collection[MediaKind]) -> dict[str, str]:
        """What the processors of these kinds say their pixels and samples depend on, e.g. the version of a decoder."""
        used = [self.processors[kind] for kind in sorted(kinds)]
        told = [processor.provenance() for processor in used if isinstance(processor, Traced)]
        return {name: value for facts in told for name, value in facts.items()}
