"""Boxes and points on what the model saw: which frame each belongs on, and where it lies there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.report.lines import Line, has_gold
from mmrl.types import Box, CoordinateFrame

TRACK_REACH = 1.0
"""A box of a track is drawn on a frame at most so many seconds away, or half the distance between frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A box on a picture, in shares of its sides; a point has no extent."""

    kind: str
    """Either gold or asked; with "point" behind it for a point."""
    left: float
    top: float
    width: float = 0.0
    height: float = 0.0


def marks(line: Line, key: str, times: Sequence[float]) -> list[list[Mark]]:
    """The marks of each picture of a medium.

    Args:
        times: when each frame of a video is shown; of an image out of a video its one time, of another image none.
    """
    frame = _frame(line["media"][key])
    found: list[list[Mark]] = [[] for _ in times or (0,)]
    if has_gold(line, key):
        for index, mark in _gold(line["gold"], times, frame):
            found[index].append(mark)
    for region in (region for turn in line["turns"] for region in turn["regions"]):
        if region["on"] == key and region["box"] is not None:
            spans = [region["span"]] if region["span"] else []
            for index in _frames(times, region["times"], spans):
                found[index].extend(_box("asked", region["box"], frame))
    return found


def _gold(gold: Line, times: Sequence[float], frame: CoordinateFrame) -> Iterator[tuple[int, Mark]]:
    for index in _frames(times, (), gold["spans"]):
        for box in gold["boxes"]:
            yield from ((index, mark) for mark in _box("gold", box, frame))
        for point in gold["points"]:
            yield from ((index, mark) for mark in _point("gold point", point, frame))
    for index, box in _track(times, gold["track"]):
        yield from ((index, mark) for mark in _box("gold", box, frame))


def _frames(times: Sequence[float], moments: Sequence[float], spans: Sequence[Sequence[float]]) -> list[int]:
    """Frames that a box belongs on: those nearest to its moments, else those within its spans, else all."""
    if not times:
        return [0]
    if moments:
        return sorted({_nearest(times, moment) for moment in moments})
    return [i for i, time in enumerate(times) if not spans or any(start <= time <= end for start, end in spans)]


def _track(times: Sequence[float], track: Sequence[tuple[float, Any]]) -> Iterator[tuple[int, Any]]:
    """Each box of a track on the frame nearest to it; where that is one frame for several, the nearest box."""
    if not times:
        return
    spacing = (times[-1] - times[0]) / max(1, len(times) - 1)
    best: dict[int, tuple[float, Any]] = {}
    for time, box in track:
        index = _nearest(times, time)
        gap = abs(times[index] - time)
        if gap <= max(TRACK_REACH, spacing / 2) and (index not in best or gap < best[index][0]):
            best[index] = (gap, box)
    yield from ((index, box) for index, (_, box) in sorted(best.items()))


def _nearest(times: Sequence[float], moment: float) -> int:
    return min(range(len(times)), key=lambda index: abs(times[index] - moment))


def _frame(medium: Line) -> CoordinateFrame:
    return CoordinateFrame(
        original=tuple(medium["original"]),
        seen=tuple(medium["seen"]),
        offset=tuple(medium["offset"]),
        scale=tuple(medium["scale"]),
    )


def _box(kind: str, box: Sequence[float], frame: CoordinateFrame) -> Iterator[Mark]:
    """The part of a box of original pixels that lies on the picture."""
    width, height = frame.seen
    x1, y1, x2, y2 = frame.to_seen(_as_box(box))
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if x1 < x2 and y1 < y2:
        yield Mark(kind=kind, left=x1 / width, top=y1 / height, width=(x2 - x1) / width, height=(y2 - y1) / height)


def _point(kind: str, point: Sequence[float], frame: CoordinateFrame) -> Iterator[Mark]:
    """A point of original pixels, where it lies on the picture."""
    width, height = frame.seen
    x, y, *_ = frame.to_seen((point[0], point[1], point[0], point[1]))
    if 0 <= x <= width and 0 <= y <= height:
        yield Mark(kind=kind, left=x / width, top=y / height)


def _as_box(values: Sequence[float]) -> Box:
    x1, y1, x2, y2 = values
    return (x1, y1, x2, y2)
