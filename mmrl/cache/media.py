"""Decoded media by where they come from and how they are shown: what is asked for again is not decoded again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping

from mmrl.errors import MediaError
from mmrl.protocols import Processor, Traced
from mmrl.types import Media, MediaKind, MediaRef

Key = tuple[Processor, MediaRef]


class MediaCache:
    """The most recently used media, up to `limit` bytes of pixels and samples. Threads may share it.

    Processors are frozen dataclasses, so that two of equal fields show a file alike.
    """

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.num_bytes = 0
        """Held now."""
        self._media: OrderedDict[Key, Media] = OrderedDict()
        self._loading: dict[Key, threading.Lock] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._media)

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

    def clear(self) -> None:
        """Forget everything: files may have changed."""
        with self._lock:
            self._media.clear()
            self.num_bytes = 0

    def _find(self, key: Key) -> Media | None:
        with self._lock:
            if key in self._media:
                self._media.move_to_end(key)
            return self._media.get(key)

    def _keep(self, key: Key, medium: Media) -> None:
        with self._lock:
            self._media[key] = medium
            self.num_bytes += size(medium)
            while self.num_bytes > self.limit:
                self.num_bytes -= size(self._media.popitem(last=False)[1])


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
