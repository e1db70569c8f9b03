"""Decoded media by where they come from and how they are shown: what is asked for again is not decoded again."""

from __future__ import annotations

import threading
from collections import OrderedDict

from mmrl.protocols import Processor
from mmrl.types import Media, MediaRef

Key = tuple[Processor, MediaRef]


class MediaCache:
    """The most recently used media, up to `limit` bytes of pixels and samples. Threads may share it.

    Processors are frozen dataclasses, so that two of equal fields show a file alike.
    """

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self._media: OrderedDict[Key, Media] = OrderedDict()
        self._size = 0
        self._loading: dict[Key, threading.Lock] = {}
        self._lock = threading.Lock()

    def load(self, processor: Processor, ref: MediaRef) -> Media:
        """`processor.load(ref)`; threads that ask for the same at once wait for one decoding."""
        key = (processor, ref)
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        try:
            with loading:
                found = self._find(key)
                if found is None:
                    found = processor.load(ref)
                    self._keep(key, found)
                return found
        finally:
            with self._lock:
                self._loading.pop(key, None)

    def _find(self, key: Key) -> Media | None:
        with self._lock:
            if key in self._media:
                self._media.move_to_end(key)
            return self._media.get(key)

    def _keep(self, key: Key, medium: Media) -> None:
        with self._lock:
            self._media[key] = medium
            self._size += size(medium)
            while self._size > self.limit:
                self._size -= size(self._media.popitem(last=False)[1])


def size(medium: Media) -> int:
    """Bytes that a medium holds."""
    return medium.data.nbytes + (0 if medium.original is None else medium.original.nbytes)


SHARED = MediaCache()
"""The process's cache: rows and tools look at the same files."""
