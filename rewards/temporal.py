"""Did the model find the right moment, and follow the right thing? Time spans and tracks against those of the gold.

Times are seconds of medium 0's file. A span that is none (inverted, empty, not finite, wholly outside, on another
medium, malformed) scores 0 with the reason; one that reaches out of the medium counts as its part inside, and the score
is flagged "clipped". Gold that cannot be used is an error that names the row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from mmrl.errors import DataError
from mmrl.protocols import CoordinateSpace, RewardContext
from mmrl.rewards.grounding import overlaps, set_f1
from mmrl.rewards.places import (
    Origin,
    Which,
    any_flag,
    choose,
    find_spans,
    find_track,
    nothing_named,
    refusals,
    refuse_guessing,
    score_rows,
    usable_boxes,
    usable_spans,
)
from mmrl.types import Box, Group, Sample, Score, TimeSpan, Trajectory

Track = Sequence[tuple[float, Box]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanIoU:
    """Temporal IoU of a span with the gold span it fits best, in 0..1; 0 where none is named."""

    source: Origin = "answer"
    which: Which = "last"
    """Which of a trajectory's spans counts; "best" for calls only."""

    def __post_init__(self) -> None:
        refuse_guessing(self.source, self.which)

    async def score(self, group: Group, context: RewardContext) -> list[Score]:
        return score_rows(group, self._score)

    def _score(self, trajectory: Trajectory, sample: Sample) -> Score:
        if not sample.gold.spans:
            return Score.not_applicable("the row has no gold span")
        gold = usable_spans(sample.gold.spans, trajectory)
        return choose(
            find_spans(trajectory, self.source),
            self.which,
            lambda span: max(span_iou(span, one) for one in gold),
            0.0,
            nothing_named(trajectory, self.source, "span"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackIoU:
    """How well an answer follows one thing through a video: a list of {"time": seconds, "bbox_2d": [...]}.

    2 * (sum of the IoUs of matched boxes) / (boxes named + gold boxes), in 0..1: the mean IoU over the gold times
    where the answer names as many boxes as the gold has. Boxes are matched one to one, within `tolerance_s` of one
    another and so that the sum is greatest. A gold time without a box earns nothing; a box without a gold time, a
    second one for the same time, and an entry that is no timed box count below the line.
    """

    tolerance_s: Annotated[float, Field(ge=0)] = 0.5
    """Greatest distance in time of two boxes that are compared, seconds."""

    async def score(self, group: Group, context: RewardContext) -> list[Score]:
        return score_rows(group, lambda trajectory, sample: self._score(trajectory, sample, context.space))

    def _score(self, trajectory: Trajectory, sample: Sample, space: CoordinateSpace) -> Score:
        if not sample.gold.track:
            return Score.not_applicable("the row has no gold track")
        gold = _gold_track(sample, trajectory)
        found = find_track(trajectory, space)
        if not found:
            return Score.of(0.0, nothing_named(trajectory, "answer", "timed box"))
        named = [one.place for one in found if one.place is not None]
        value = set_f1(self._credit(named, gold), len(found), len(gold))
        return Score.of(value, refusals(found), flag=any_flag(found))

    def _credit(self, named: Track, gold: Track) -> np.ndarray:
        """(named, gold) IoUs of boxes at the same time, 0 elsewhere."""
        times, gold_times = (np.array([time for time, _ in track]) for track in (named, gold))
        near = np.abs(times[:, None] - gold_times[None, :]) <= self.tolerance_s + 1e-9
        return overlaps([box for _, box in named], [box for _, box in gold]) * near


def span_iou(first: TimeSpan, second: TimeSpan) -> float:
    """Intersection over union of two spans, each of some length."""
    shared = max(min(first[1], second[1]) - max(first[0], second[0]), 0.0)
    return shared / ((first[1] - first[0]) + (second[1] - second[0]) - shared)


def _gold_track(sample: Sample, trajectory: Trajectory) -> Track:
    times = [time for time, _ in sample.gold.track]
    for number, time in enumerate(times):
        if not (math.isfinite(time) and time >= 0):
            raise DataError(f"gold track {number}: its time is {time}; correct the row")
    boxes = usable_boxes([box for _, box in sample.gold.track], trajectory)
    return list(zip(times, boxes, strict=True))
