"""Vision features by content: each medium is encoded once per version of the vision tower."""

from __future__ import annotations

from collections.abc import Iterable
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
        self._features: dict[str, torch.Tensor] = {}
        self._size = 0

    @torch.no_grad()
    def encode(self, media: Iterable[Media]) -> dict[str, torch.Tensor]:
        """Features of all `media`; those not held are encoded together in one pass."""
        wanted = {medium.key: medium for medium in media}
        missing = [medium for key, medium in wanted.items() if key not in self._features]
        new = self.family.encode_media(self.model, missing)
        for medium, features in zip(missing, new, strict=True):
            self._features[medium.key] = features
            self._size += len(features)
        found = {key: self._features[key] for key in wanted}
        self._trim()
        return found

    def clear(self) -> None:
        """Forget everything: the vision tower has changed."""
        self._features.clear()
        self._size = 0

    def _trim(self) -> None:
        while self._size > self.limit:
            self._size -= len(self._features.pop(next(iter(self._features))))
