"""Did the model look at the right place? Overlap of the box that it asked for with the gold box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torchvision import ops

from mmrl.boxes import valid_box
from mmrl.protocols import RewardContext
from mmrl.scoring import score_each
from mmrl.types import Box, Group, Region, Sample, Score, Trajectory

OVERLAPS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "iou": ops.box_iou,
    "giou": ops.generalized_box_iou,
    "diou": ops.distance_box_iou,
    "ciou": ops.complete_box_iou,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxIoU:
    """Overlap of a requested box with the gold box it fits best, both in original pixels.

    Range: iou 0..1, the others -1..1. A trajectory that asks for no box scores the least, so that asking always pays.
    """

    kind: Literal["iou", "giou", "diou", "ciou"] = "iou"
    which: Literal["first", "last", "best"] = "last"
    """Which of a trajectory's requests counts."""

    async def score(self, group: Group, context: RewardContext) -> list[Score]:
        return score_each(group, self._score)

    def _score(self, trajectory: Trajectory, sample: Sample) -> Score:
        if not sample.gold.boxes:
            return Score.not_applicable("the row has no gold box")
        asked = [region for turn in trajectory.turns for region in turn.regions if region.box is not None]
        if not asked:
            return Score.of(self._least(), "no box was asked for")
        scores = [self._overlap(region, trajectory, sample.gold.boxes) for region in asked]
        if self.which == "best":
            return max(scores, key=lambda score: score.value)
        return scores[0 if self.which == "first" else -1]

    def _overlap(self, region: Region, trajectory: Trajectory, gold: tuple[Box, ...]) -> Score:
        assert region.box is not None
        medium = trajectory.media[region.on]
        while medium.parent is not None:
            medium = trajectory.media[medium.parent]
        first = next(iter(trajectory.media.values()))
        if medium is not first:
            return Score.of(self._least(), "the box is on another image than the gold box")
        size = first.frame.original
        box, reason = valid_box(region.box, size)
        if box is None:
            return Score.of(self._least(), reason)
        gold = tuple(clipped for clipped, _ in (valid_box(one, size) for one in gold) if clipped is not None)
        values = OVERLAPS[self.kind](torch.tensor([box]).double(), torch.tensor(gold).double())
        return Score.of(max(float(values.max()), self._least()))

    def _least(self) -> float:
        return 0.0 if self.kind == "iou" else -1.0
