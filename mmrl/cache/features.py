"""Vision features by content: each medium is encoded once per version of the vision tower."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from mmrl.protocols import ModelFamily
from mmrl.types import Media


class FeatureCache:
    """Features (tokens, D) without gradients, by the medium's content key.

    Args:
        limit: features that are kept at most, in vision tokens; the oldest go first.
    """

    def __init__(self, model: Any, family: ModelFamily, limit: int = 1 << 20) -> None:
        self.model, self.family, self.limit = model, family, limit
        self.encoded = 0
        """Parts that went through a tower so far."""
        self._features: dict[str, torch.Tensor] = {}
        self._parts: dict[str, tuple[str, ...]] = {}
        self._size = 0

    @torch.no_grad()
    def encode(self, media: Iterable[Media]) -> dict[str, torch.Tensor]:
        """Features of all `media`. What is not held is encoded together in one pass, in parts: a denser look at a
        video encodes only the moments that were not seen before."""
        wanted = {medium.key: medium for medium in media}
        missing: dict[str, Media] = {}
        for key, medium in wanted.items():
            if not all(part in self._features for part in self._parts.get(key, (key,))):
                parts = self.family.parts(medium)
                self._parts[key] = tuple(part.key for part in parts)
                missing |= {part.key: part for part in parts if part.key not in self._features}
        self._encode(list(missing.values()))
        found = {key: self._joined(self._parts.get(key, (key,))) for key in wanted}
        self._trim()
        return found

    def clear(self) -> None:
        """Forget everything: the vision tower has changed."""
        self._features.clear()
        self._parts.clear()
        self._size = 0

    def _encode(self, parts: Sequence[Media]) -> None:
        for part, features in zip(parts, self.family.encode_media(self.model, parts), strict=True):
            self._features[part.key] = features
            self._size += len(features)
        self.encoded += len(parts)

    def _joined(self, parts: Sequence[str]) -> torch.Tensor:
        return self._features[parts[0]] if len(parts) == 1 else torch.cat([self._features[part] for part in parts])

    def _trim(self) -> None:
        if self._size <= self.limit:
            return
        while self._size > self.limit:
            self._size -= len(self._features.pop(next(iter(self._features))))
        self._parts = {key: parts for key, parts in self._parts.items() if all(p in self._features for p in parts)}
