"""Features of media by content: each is encoded once per version of the towers, and trained through that one pass.

A medium is encoded by its parts, the steps in time of a video, which a tower sees apart from one another: a denser look
at a video encodes only the moments that were not seen before.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from mmrl.cache.disk import DiskTier
from mmrl.protocols import ModelFamily
from mmrl.types import Media

T = TypeVar("T")


class FeatureCache:
    """Features (tokens, D), wider with DeepStack, by the medium's content key.

    Where a tower is trained, its features are encoded with a graph: under `tracked` by the rollouts, or by `leaves`.
    A part is *live* while its graph stands, and rollouts and the training step share its one pass through the tower.
    Threads may share a cache: while one encodes, others wait.

    Args:
        memory_bytes: of features that are kept; the least recently used go first, live ones never.
        chunk_tokens: tokens that go through a tower at once, and whose activations a graph keeps at most; those of
            other live parts are computed again in the backward, a chunk at a time.
        disk: keeps features between runs, until the towers change. It never gives or takes live ones.
    """

    def __init__(
        self,
        model: Any,
        family: ModelFamily,
        *,
        memory_bytes: int = 2 << 30,
        chunk_tokens: int = 4096,
        disk: DiskTier | None = None,
    ) -> None:
        self.model, self.family, self.disk = model, family, disk
        self.memory_bytes, self.chunk_tokens = memory_bytes, chunk_tokens
        self.encoded = 0
        """Parts that went through a tower so far."""
        self.num_bytes = 0
        """Of the features held now."""
        self._features: OrderedDict[str, torch.Tensor] = OrderedDict()
        """Of each part, detached."""
        self._live: dict[str, torch.Tensor] = {}
        """Of each live part, with its graph."""
        self._kept_tokens = 0
        """Tokens of live parts whose activations are kept."""
        self._parts: dict[str, tuple[str, ...]] = {}
        """Keys of each medium's parts."""
        self._tracks = False
        self._lock = threading.RLock()

    def encode(self, media: Iterable[Media]) -> dict[str, torch.Tensor]:
        """Detached features of all `media`. What is not held is encoded together."""
        wanted = {medium.key: medium for medium in media}
        with self._lock:
            missing = self._missing(wanted.values(), self._features)
            disk = None if self._tracks else self.disk
            if disk is not None:
                missing = self._read(disk, missing)
            self._encode(missing, with_graph=self._tracks)
            if disk is not None:
                for key in missing:
                    disk.put(key, self._features[key])
            found = {key: _joined([self._features[part] for part in self._used(key)]) for key in wanted}
            self._trim()
        return found

    @contextlib.contextmanager
    def tracked(self) -> Iterator[None]:
        """While open, what `encode` sends through a tower stays live."""
        self._tracks = True
        try:
            yield
        finally:
            self._tracks = False

    def leaves(self, media: Iterable[Media]) -> Leaves:
        """The media's features for one training step. Parts that are not live are encoded, with a graph."""
        wanted = {medium.key: medium for medium in media}
        with self._lock:
            self._encode(self._missing(wanted.values(), self._live), with_graph=True)
            parts = {key: self._used(key) for key in wanted}
            live = {part: self._live[part] for used in parts.values() for part in used}
            features = {
                key: _joined([live[part].detach() for part in used]).requires_grad_(live[used[0]].requires_grad)
                for key, used in parts.items()
            }
            self._trim()
        return Leaves(features=features, parts=parts, live=live, spent=self._end_graphs)

    def clear(self) -> None:
        """Forget everything: the towers have changed. What is on disk is of their first weights: it is let go."""
        with self._lock:
            self._features.clear()
            self._parts.clear()
            self._end_graphs()
            self.num_bytes = 0
            self.disk = None

    def _missing(self, media: Iterable[Media], held: Container[str]) -> dict[str, Media]:
        """Parts of the media that are not held, by key."""
        missing: dict[str, Media] = {}
        for medium in media:
            if not all(part in held for part in self._parts.get(medium.key, (medium.key,))):
                parts = self.family.parts(medium)
                self._parts[medium.key] = tuple(part.key for part in parts)
                missing |= {part.key: part for part in parts if part.key not in held}
        return missing

    def _read(self, disk: DiskTier, missing: Mapping[str, Media]) -> dict[str, Media]:
        """Take what the disk holds; returns what it does not."""
        for key in missing:
            found = disk.get(key)
            if found is not None:
                self._hold(key, found.to(self.model.device))
        return {key: part for key, part in missing.items() if key not in self._features}

    def _encode(self, parts: Mapping[str, Media], *, with_graph: bool) -> None:
        for chunk in chunks(parts.values(), self.family.tower_tokens, self.chunk_tokens):
            tokens = sum(map(self.family.tower_tokens, chunk))
            again = self._kept_tokens + tokens > self.chunk_tokens
            if with_graph and not again:
                self._kept_tokens += tokens
            for part, output in zip(chunk, self._run(chunk, with_graph, again), strict=True):
                if with_graph:
                    self._live[part.key] = output
                if part.key not in self._features:
                    self._hold(part.key, _owned(output.detach()))
            self.encoded += len(chunk)

    def _run(self, parts: Sequence[Media], with_graph: bool, again: bool) -> list[torch.Tensor]:
        """One pass through the towers.

        Args:
            again: keep no activations, but compute them again in the backward.
        """
        with torch.set_grad_enabled(with_graph):
            if with_graph and again:
                found: list[torch.Tensor] = checkpoint(
                    self._forward, parts, use_reentrant=False, preserve_rng_state=False
                )
                return found
            return self._forward(parts)

    def _forward(self, parts: Sequence[Media]) -> list[torch.Tensor]:
        """As in a rollout, also where it is computed again for a model that trains by then."""
        towers = self.family.towers(self.model)
        modes = [tower.training for tower in towers]
        try:
            for tower in towers:
                tower.eval()
            return self.family.encode_media(self.model, parts)
        finally:
            for tower, mode in zip(towers, modes, strict=True):
                tower.train(mode)

    def _hold(self, key: str, features: torch.Tensor) -> None:
        self._features[key] = features
        self.num_bytes += features.nbytes

    def _used(self, key: str) -> tuple[str, ...]:
        """Keys of a medium's parts, which count as used now."""
        parts = self._parts.get(key, (key,))
        for part in parts:
            self._features.move_to_end(part)
        return parts

    def _trim(self) -> None:
        if self.num_bytes <= self.memory_bytes:
            return
        for key in [key for key in self._features if key not in self._live]:
            if self.num_bytes > self.memory_bytes:
                self.num_bytes -= self._features.pop(key).nbytes
        self._parts = {key: parts for key, parts in self._parts.items() if all(p in self._features for p in parts)}

    def _end_graphs(self) -> None:
        with self._lock:
            self._live.clear()
            self._kept_tokens = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Leaves:
    """Features that a training step starts from, cut off the towers' graphs."""

    features: dict[str, torch.Tensor]
    """Of each medium; they gather the gradients of all forwards. Those of a frozen tower require none."""
    parts: dict[str, tuple[str, ...]]
    """Keys of each medium's parts."""
    live: dict[str, torch.Tensor]
    """Of each part, with its graph."""
    spent: Callable[[], None]
    """Is called when the graphs are used up."""

    def backward(self) -> None:
        """Send what gathered in the leaves through the towers, in one pass. No part is live afterwards."""
        gradients: dict[str, torch.Tensor] = {}
        for key, leaf in self.features.items():
            if leaf.grad is None:
                continue
            parts = self.parts[key]
            pieces = leaf.grad.split([len(self.live[part]) for part in parts])
            for part, piece in zip(parts, pieces, strict=True):
                gradients[part] = gradients[part] + piece if part in gradients else piece
        if gradients:
            torch.autograd.backward([self.live[part] for part in gradients], list(gradients.values()))
        self.spent()


def chunks(parts: Iterable[T], size: Callable[[T], int], limit: int) -> list[list[T]]:
    """The parts in order, in runs of at most `limit` in size; a larger part is a run of its own."""
    found: list[list[T]] = []
    room = 0
    for part in parts:
        if not found or size(part) > room:
            found.append([])
            room = limit
        found[-1].append(part)
        room -= size(part)
    return found


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _owned(features: torch.Tensor) -> torch.Tensor:
    """Not a slice, which would keep the whole of a tower's output in memory."""
    return features if features.untyped_storage().nbytes() == features.nbytes else features.clone()
