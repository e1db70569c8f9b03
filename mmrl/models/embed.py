"""Token embeddings with the features of media filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedded:
    """What a text model starts from. M features, L levels of DeepStack."""

    embeds_BTD: torch.Tensor
    positions_3BT: torch.Tensor
    media_BT: torch.Tensor | None = None
    """True where a feature stands."""
    deep_LMD: tuple[torch.Tensor, ...] = ()
    """What is added to the states of the first L layers, in the order of `media_BT`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placed:
    """Features of a medium at their place."""

    row: int
    start: int
    features: torch.Tensor
    """(tokens, D), or (tokens, D * (1 + levels)) with DeepStack."""


def fill(embeds_BTD: torch.Tensor, positions_3BT: torch.Tensor, placed: Sequence[Placed]) -> Embedded:
    """Gradients flow to embeddings and features."""
    if not placed:
        return Embedded(embeds_BTD=embeds_BTD, positions_3BT=positions_3BT)
    device, width = embeds_BTD.device, embeds_BTD.shape[2]
    placed = sorted(placed, key=lambda place: (place.row, place.start))
    lengths = [len(place.features) for place in placed]
    row_M = torch.cat([torch.full((n,), place.row) for n, place in zip(lengths, placed, strict=True)]).to(device)
    at_M = torch.cat([torch.arange(p.start, p.start + n) for n, p in zip(lengths, placed, strict=True)]).to(device)
    values, *deep = torch.cat([place.features for place in placed]).to(embeds_BTD.dtype).split(width, dim=1)
    media = torch.zeros(embeds_BTD.shape[:2], dtype=torch.bool, device=device)
    media[row_M, at_M] = True
    return Embedded(
        embeds_BTD=embeds_BTD.index_put((row_M, at_M), values),
        positions_3BT=positions_3BT,
        media_BT=media,
        deep_LMD=tuple(deep),
    )
