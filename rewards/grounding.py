"""Did the model look at, or point to, the right place? Boxes and points against those of the gold.

All is compared in original pixels of medium 0. `source` says where places come from: "call" is what tool calls looked
at, "answer" what the final answer says. A place that is none (inverted, without area, not finite, wholly outside, on
another medium, malformed) scores the least, with the reason; one that reaches out of the image counts as its part
inside, and the score is flagged "clipped". Gold that cannot be used is an error that names the row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torchvision import ops

from mmrl.boxes import ROUNDING_PX
from mmrl.errors import DataError
from mmrl.protocols import CoordinateSpace, RewardContext
from mmrl.rewards.places import (
    Found,
    Origin,
    Which,
    any_flag,
    choose,
    find_boxes,
    find_points,
    nothing_named,
    refusals,
    refuse_guessing,
    score_rows,
    usable_boxes,
    usable_points,
)
from mmrl.types import Box, Group, Point, Sample, Score, Trajectory

OVERLAPS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "iou": ops.box_iou,
    "giou": ops.generalized_box_iou,
    "diou": ops.distance_box_iou,
    "ciou": ops.complete_box_iou,
}
NO_BOXES = "no_boxes"
"""Key of a row's metadata: true says that the thing asked for is not there, so that the right answer names no box."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxIoU:
    """Overlap of a box with the gold box it fits best.

    Range: iou 0..1, the others -1..1. A trajectory that names no box scores the least, so that naming one always pays.
    """

    kind: Literal["iou", "giou", "diou", "ciou"] = "iou"
    source: Origin = "call"
    which: Which = "last"
    """Which of a trajectory's boxes counts; "best" for calls only."""

    def __post_init__(self) -> None:
        refuse_guessing(self.source, self.which)

    async def score(self, group: Group, context: RewardContext) -> list[Score]:
        return score_rows(group, lambda trajectory, sample: self._score(trajectory, sample, context.space))

    def _score(self, trajectory: Trajectory, sample: Sample, space: CoordinateSpace) -> Score:
        if not sample.gold.boxes:
            return Score.not_applicable("the row has no gold box")
        gold = usable_boxes(sample.gold.boxes, trajectory)
        least = 0.0 if self.kind == "iou" else -1.0
        return choose(
            find_boxes(trajectory, self.source, space),
            self.which,
            lambda box: min(max(float(overlaps([box], gold, self.kind).max()), least), 1.0),
            least,
            nothing_named(trajectory, self.source, "box"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PointInBox:
    """1 where a point lies in a gold box, edges included, else 0; a box that is named stands for its centre.

    A row with gold points and no gold box asks for a point within `radius_px` of one of them.
    """

    source: Origin = "answer"
    which: Which = "last"
    """Which of a trajectory's points counts; "best" for calls only."""
    radius_px: Annotated[float, Field(ge=0)] = 10.0
    """Greatest distance from a gold point, original pixels."""

    def __post_init__(self) -> None:
        refuse_guessing(self.source, self.which)

    async def score(self, group: Group, context: RewardContext) -> list[Score]:
        return score_rows(group, lambda trajectory, sample: self._score(trajectory, sample, context.space))

    def _score(self, trajectory: Trajectory, sample: Sample, space: CoordinateSpace) -> Score:
        if not sample.gold.boxes and not sample.gold.points:
            return Score.not_applicable("the row has no gold box and no gold point")
        boxes, points = usable_boxes(sample.gold.boxes, trajectory), usable_points(sample.gold.points, trajectory)
        return choose(
            find_points(trajectory, self.source, space),
            self.which,
            lambda point: float(_in_any(point, boxes) if boxes else _near_any(point, points, self.radius_px)),
            0.0,
            nothing_named(trajectory, self.source, "point"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxSetF1:
    """How well a set of boxes is the set of gold boxes: F1 = 2 * credit / (boxes named + gold boxes), in 0..1.

    Each box is matched with at most one gold box, so that the credit is greatest. What is left over on either side
    earns nothing and counts below the line: extra boxes, doubles, and places that are no boxes.

    A row that has no gold box is scored only where its metadata say `"no_boxes": true`: an answer that names no box
    (none at all, or an empty list) then scores 1, any other, or no answer, 0.
    """

    source: Origin = "answer"
    threshold: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    """A match of this IoU or more earns 1, a lesser one nothing. None: a match earns its IoU."""

    async def score(self, group: Group, context: RewardContext) -> list[Score]:
        return score_rows(group, lambda trajectory, sample: self._score(trajectory, sample, context.space))

    def _score(self, trajectory: Trajectory, sample: Sample, space: CoordinateSpace) -> Score:
        absent = sample.metadata.get(NO_BOXES) is True
        if absent and sample.gold.boxes:
            raise DataError(f"metadata say {NO_BOXES}, but there are gold boxes; correct the row")
        if not absent and not sample.gold.boxes:
            return Score.not_applicable("the row has no gold box")
        found = find_boxes(trajectory, self.source, space)
        if absent:
            return self._abstained(trajectory, found)
        gold = usable_boxes(sample.gold.boxes, trajectory)
        if not found:
            return Score.of(0.0, nothing_named(trajectory, self.source, "box"))
        return Score.of(self._f1(found, gold), refusals(found), flag=any_flag(found))

    def _abstained(self, trajectory: Trajectory, found: Sequence[Found[Box]]) -> Score:
        if trajectory.answer is None:
            return Score.of(0.0, "no answer")
        return Score.of(not found, "there is no box to name" if found else "")

    def _f1(self, found: Sequence[Found[Box]], gold: Sequence[Box]) -> float:
        named = [one.place for one in found if one.place is not None]
        credit = overlaps(named, gold)
        if self.threshold is not None:
            credit = (credit >= self.threshold - 1e-6).astype(float)
        return set_f1(credit, len(found), len(gold))


def set_f1(credit: np.ndarray, num_named: int, num_gold: int) -> float:
    """2 * (greatest total credit of a one-to-one matching) / (num_named + num_gold).

    Args:
        credit: (named, gold) in 0..1; it may have fewer rows than `num_named`.
    """
    rows, columns = linear_sum_assignment(credit, maximize=True)
    return min(2 * float(credit[rows, columns].sum()) / (num_named + num_gold), 1.0)


def overlaps(boxes: Sequence[Box], gold: Sequence[Box], kind: str = "iou") -> np.ndarray:
    """(boxes, gold) overlaps of valid boxes, in double precision."""
    first, second = (torch.tensor(list(side), dtype=torch.float64).reshape(-1, 4) for side in (boxes, gold))
    return OVERLAPS[kind](first, second).numpy()


def _in_any(point: Point, boxes: Sequence[Box]) -> bool:
    x, y, more = *point, ROUNDING_PX
    return any(x1 - more <= x <= x2 + more and y1 - more <= y <= y2 + more for x1, y1, x2, y2 in boxes)


def _near_any(point: Point, points: Sequence[Point], radius: float) -> bool:
    return any(math.dist(point, other) <= radius for other in points)
