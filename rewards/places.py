"""The places that a trajectory named, and those of the gold, in one measure: original pixels and seconds of medium 0.

A place comes from a tool call (the region that the call looked at) or from the final answer. Numbers of an answer are
in the space that the model speaks, as it sees medium 0; times are seconds of the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from mmrl.boxes import ROUNDING_PX, valid_box, was_clipped
from mmrl.errors import DataError
from mmrl.protocols import CoordinateSpace
from mmrl.rewards.reading import Refused, read_boxes, read_points, read_spans, read_track
from mmrl.scoring import score_each
from mmrl.types import Box, CoordinateFrame, Group, Media, Point, Region, Sample, Score, TimeSpan, Trajectory

Origin = Literal["call", "answer"]
"""Where a place comes from: what tool calls looked at, or what the final answer says."""
Which = Literal["first", "last", "best"]
"""Which of several places counts."""
CLIPPED = "clipped"
"""Flag of a score: a place reached out of its medium, and only its part inside counted."""

P = TypeVar("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Generic[P]):
    """A place that a trajectory named, or why it is none."""

    place: P | None
    reason: str = ""
    flag: str = ""


def find_boxes(trajectory: Trajectory, source: Origin, space: CoordinateSpace) -> list[Found[Box]]:
    """Boxes in original pixels, in the order in which they were named."""
    if source == "answer":
        return [_answered_box(box, trajectory, space) for box in read_boxes(trajectory.answer or "")]
    asked = [(region, region.box) for region in _regions(trajectory) if region.box is not None]
    return [_checked_box(box, trajectory) if _on_first(region, trajectory) else ELSEWHERE for region, box in asked]


def find_points(trajectory: Trajectory, source: Origin, space: CoordinateSpace) -> list[Found[Point]]:
    """Points in original pixels; a box stands for the centre of its part inside."""
    if source == "call":
        return [_centre(found) for found in find_boxes(trajectory, source, space)]
    return [_answered_point(place, trajectory, space) for place in read_points(trajectory.answer or "")]


def find_spans(trajectory: Trajectory, source: Origin) -> list[Found[TimeSpan]]:
    """Time spans in seconds of the file."""
    extent = time_extent(first_medium(trajectory))
    if source == "answer":
        return [_checked_span(span, extent) for span in read_spans(trajectory.answer or "")]
    asked = [(region, region.span) for region in _regions(trajectory) if region.span is not None]
    return [_checked_span(span, extent) if _on_first(region, trajectory) else ELSEWHERE for region, span in asked]


def find_track(trajectory: Trajectory, space: CoordinateSpace) -> list[Found[tuple[float, Box]]]:
    """(time, box in original pixels) of the answer."""
    return [_answered_timed_box(entry, trajectory, space) for entry in read_track(trajectory.answer or "")]


def usable_boxes(gold: Sequence[Box], trajectory: Trajectory) -> list[Box]:
    """The parts of gold boxes inside medium 0. DataError where one cannot be used."""
    result = []
    for number, box in enumerate(gold):
        inside, reason = valid_box(box, first_medium(trajectory).frame.original)
        if inside is None:
            raise DataError(f"gold box {number}: {reason}; correct the row")
        result.append(inside)
    return result


def usable_points(gold: Sequence[Point], trajectory: Trajectory) -> list[Point]:
    """Gold points as they are. DataError where one lies outside medium 0."""
    for number, point in enumerate(gold):
        if not _inside(point, first_medium(trajectory).frame.original):
            raise DataError(f"gold point {number}: the point lies outside the image; correct the row")
    return list(gold)


def usable_spans(gold: Sequence[TimeSpan], trajectory: Trajectory) -> list[TimeSpan]:
    """The parts of gold spans inside medium 0. DataError where one cannot be used."""
    result = []
    for number, span in enumerate(gold):
        inside, reason = valid_span(span, time_extent(first_medium(trajectory)))
        if inside is None:
            raise DataError(f"gold span {number}: {reason}; correct the row")
        result.append(inside)
    return result


def valid_span(span: TimeSpan, extent: TimeSpan) -> tuple[TimeSpan | None, str]:
    """(span clipped to the medium's extent, "") or (None, why it covers nothing of it)."""
    if not all(map(math.isfinite, span)):
        return None, "the span is not finite"
    if not span[0] < span[1]:
        return None, "the span is inverted or empty"
    clipped = (max(span[0], extent[0]), min(span[1], extent[1]))
    return (clipped, "") if clipped[0] < clipped[1] else (None, "the span lies outside the medium")


def time_extent(medium: Media) -> TimeSpan:
    """Where a medium starts and ends, in seconds; endless where nothing tells."""
    if medium.span is not None:
        return medium.span
    if len(medium.times) > 1:  # the last frame is shown for as long as the one before it
        return (0.0, 2 * medium.times[-1] - medium.times[-2])
    return (0.0, math.inf)


def first_medium(trajectory: Trajectory) -> Media:
    """The medium that gold places are in. DataError where there is none."""
    if not trajectory.media:
        raise DataError("the row has gold places but no medium; correct the row")
    return next(iter(trajectory.media.values()))


def score_rows(group: Group, score: Callable[[Trajectory, Sample], Score]) -> list[Score]:
    """Lift a function of one trajectory to its group; a gold that cannot be used is an error that names the row."""

    def checked(trajectory: Trajectory, sample: Sample) -> Score:
        try:
            return score(trajectory, sample)
        except DataError as error:
            return Score.error(f"{sample.where}: {error}")

    return score_each(group, checked)


def choose(found: Sequence[Found[P]], which: Which, value: Callable[[P], float], least: float, nothing: str) -> Score:
    """The score of the place that counts: `value` of it, or `least` where it is none.

    Args:
        nothing: the reason where nothing was named.
    """
    if not found:
        return Score.of(least, nothing)
    counted = {"first": found[:1], "last": found[-1:], "best": found}[which]
    scores = [
        Score.of(least, one.reason) if one.place is None else Score.of(value(one.place), flag=one.flag)
        for one in counted
    ]
    return max(scores, key=lambda score: score.value)


def nothing_named(trajectory: Trajectory, source: Origin, what: str) -> str:
    """Why a trajectory names no place."""
    if source == "call":
        return f"no {what} was asked for"
    return "no answer" if trajectory.answer is None else f"the answer names no {what}"


def refuse_guessing(source: Origin, which: Which) -> None:
    """The best of what an answer lists would pay for listing everything; calls are limited, an answer's list is not."""
    if source == "answer" and which == "best":
        raise ValueError("which: 'best' rewards an answer for guessing many places; use 'first' or 'last'")


def any_flag(found: Sequence[Found[P]]) -> str:
    return next((one.flag for one in found if one.flag), "")


def refusals(found: Sequence[Found[P]]) -> str:
    """How many places could not be used and why the first could not; nothing where all could."""
    reasons = [one.reason for one in found if one.place is None]
    return f"{len(reasons)} of {len(found)} places refused: {reasons[0]}" if reasons else ""


ELSEWHERE: Found[Any] = Found(place=None, reason="the place is on another medium than the gold")


def _regions(trajectory: Trajectory) -> list[Region]:
    return [region for turn in trajectory.turns for region in turn.regions]


def _on_first(region: Region, trajectory: Trajectory) -> bool:
    """Whether a region lies in medium 0, read from it or from a cut of a cut of it."""
    first = first_medium(trajectory).key
    key: str | None = region.on
    walked: set[str] = set()
    while key is not None and key not in walked:  # media that are cut from one another lead nowhere
        if key == first:
            return True
        walked.add(key)
        key = trajectory.media[key].parent
    return False


def _checked_box(box: Box, trajectory: Trajectory) -> Found[Box]:
    inside, reason = valid_box(box, first_medium(trajectory).frame.original)
    flag = CLIPPED if inside is not None and was_clipped(box, inside) else ""
    return Found(place=inside, reason=reason, flag=flag)


def _answered_box(box: Box | Refused, trajectory: Trajectory, space: CoordinateSpace) -> Found[Box]:
    if isinstance(box, Refused):
        return Found(place=None, reason=box.reason)
    return _checked_box(_to_original(box, first_medium(trajectory).frame, space), trajectory)


def _answered_point(place: Point | Box | Refused, trajectory: Trajectory, space: CoordinateSpace) -> Found[Point]:
    if isinstance(place, Refused):
        return Found(place=None, reason=place.reason)
    if len(place) == 4:
        return _centre(_answered_box(place, trajectory, space))
    frame = first_medium(trajectory).frame
    point = _to_original((*place, *place), frame, space)[:2]
    if not _inside(point, frame.original):
        return Found(place=None, reason="the point lies outside the image")
    return Found(place=point)


def _answered_timed_box(
    entry: tuple[float, Box] | Refused, trajectory: Trajectory, space: CoordinateSpace
) -> Found[tuple[float, Box]]:
    if isinstance(entry, Refused):
        return Found(place=None, reason=entry.reason)
    found = _answered_box(entry[1], trajectory, space)
    return Found(place=None if found.place is None else (entry[0], found.place), reason=found.reason, flag=found.flag)


def _checked_span(span: TimeSpan | Refused, extent: TimeSpan) -> Found[TimeSpan]:
    if isinstance(span, Refused):
        return Found(place=None, reason=span.reason)
    inside, reason = valid_span(span, extent)
    cut = inside is not None and max(abs(span[0] - inside[0]), abs(span[1] - inside[1])) > 1e-3
    return Found(place=inside, reason=reason, flag=CLIPPED if cut else "")


def _centre(found: Found[Box]) -> Found[Point]:
    if found.place is None:
        return Found(place=None, reason=found.reason)
    x1, y1, x2, y2 = found.place
    return Found(place=((x1 + x2) / 2, (y1 + y2) / 2), flag=found.flag)


def _to_original(box: Box, frame: CoordinateFrame, space: CoordinateSpace) -> Box:
    return frame.to_original(space.to_seen(box, frame))


def _inside(point: Point, size: tuple[int, int]) -> bool:
    """Whether a point is finite and in an image of this size, edges included."""
    return all(-ROUNDING_PX <= value <= side + ROUNDING_PX for value, side in zip(point, size, strict=True))
