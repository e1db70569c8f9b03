"""Decodes the media of coming rows in the background, so that the rows find them in the cache.

A hint and nothing more: what a run computes does not depend on it. What cannot be decoded is silent here; it fails
again, and is counted, where its row is drawn.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable

from mmrl.cache.media import MediaLoader, size
from mmrl.types import MediaRef

THREADS = min(4, os.cpu_count() or 1)
PATIENCE_S = 1.0
"""How long `close` waits for a decoding that is still running; it then ends by itself, and holds up no exit."""


class Prefetcher:
    """Loads media in threads, which live as long as there is something to load.

    Half of the cache is for what comes, half for what is in use: it stops where another medium as large as the largest
    so far might not fit into its half.
    """

    def __init__(self, media: MediaLoader) -> None:
        self.media = media
        self._lock = threading.Lock()
        self._wanted: deque[MediaRef] = deque()
        self._threads: set[threading.Thread] = set()
        self._num_bytes = 0
        """Loaded of the latest wishes."""
        self._largest = 0
        """Bytes of the largest medium so far."""

    def start(self, refs: Iterable[MediaRef]) -> None:
        """Load these, in their order, in place of what was wanted before. Returns at once."""
        with self._lock:
            self._wanted, self._num_bytes = deque(dict.fromkeys(refs)), 0
            for _ in range(min(THREADS, len(self._wanted)) - len(self._threads)):
                thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
                self._threads.add(thread)
                thread.start()

    def close(self) -> None:
        """Load no more."""
        with self._lock:
            self._wanted.clear()
            running = list(self._threads)
        for thread in running:
            thread.join(PATIENCE_S)

    def _run(self) -> None:
        while (ref := self._next()) is not None:
            num_bytes = self._load(ref)
            with self._lock:
                self._num_bytes += num_bytes
                self._largest = max(self._largest, num_bytes)

    def _next(self) -> MediaRef | None:
        """What this thread loads next; None ends it."""
        with self._lock:
            expected = self._num_bytes + len(self._threads) * self._largest
            if self._wanted and expected < self.media.cache.limit // 2:
                return self._wanted.popleft()
            self._threads.discard(threading.current_thread())
            return None

    def _load(self, ref: MediaRef) -> int:
        try:
            return size(self.media.load(ref))
        except BaseException:  # whatever it is, it is raised again where the row is drawn
            return 0
