"""Gold values: how rows write answers, boxes, points, spans and tracks, and whether they lie in the first medium."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from mmrl.boxes import valid_box
from mmrl.data.media import numbers, time_span
from mmrl.errors import DataError
from mmrl.rollout.parse import find_answer
from mmrl.types import Box, Gold, Media, Point, Sample, Size, TimeSpan

T = TypeVar("T")
RELATIVE = "gold_is_relative"
"""Metadata key of a sample whose boxes and points are shares of its first medium's size, until that is loaded."""
SPAN_SLACK_S = 1.0
"""How far a gold time may lie outside its medium: annotations are rounded. Some of a span must lie inside."""


def gold_text(value: object, key: str) -> str | None:
    """An answer as text. Lists and objects, which some formats hold, stay JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, list, dict)):
        raise ValueError(f"{key}: must be text or a number, got {type(value).__name__}")
    try:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)
    except TypeError as error:  # tables hold bytes, dates and more
        raise ValueError(f"{key}: cannot be written as text ({error})") from None


def inside_answer(text: str) -> str:
    """What stands in the last <answer>...</answer>; all of a text that has none."""
    found = find_answer(text)
    return text if found is None else found


def box(value: object, key: str) -> Box:
    """[x1, y1, x2, y2]."""
    if not isinstance(value, list) or len(value) != 4 or any(type(v) not in (int, float) for v in value):
        raise ValueError(f"{key}: gold box must be four numbers [x1, y1, x2, y2], got {value!r:.80}")
    try:
        x1, y1, x2, y2 = (float(v) for v in value)
    except OverflowError:  # a whole number of hundreds of digits
        x1 = y1 = x2 = y2 = math.inf
    if not all(map(math.isfinite, (x1, y1, x2, y2))) or not (x1 < x2 and y1 < y2):
        raise ValueError(f"{key}: gold box must be finite with x1 < x2 and y1 < y2, got {value!r:.80}")
    return (x1, y1, x2, y2)


def point(value: object, key: str) -> Point:
    """[x, y]."""
    x, y = numbers(value, 2, key, "a gold point must be two numbers [x, y]")
    return (x, y)


def moment(value: object, key: str) -> tuple[float, Box]:
    """[time, [x1, y1, x2, y2]] of a track."""
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{key}: must be [time, [x1, y1, x2, y2]], got {value!r:.80}")
    (time,) = numbers(value[:1], 1, key, "its time must be a number")
    return (time, box(value[1], key))


def each(values: Sequence[Any], read: Callable[[object, str], T], key: str) -> tuple[T, ...]:
    """All of a list, each read under its number."""
    return tuple(read(value, f"{key}.{number}") for number, value in enumerate(values))


def settle(sample: Sample, media: Sequence[Media]) -> Sample:
    """The sample with gold in pixels of its first medium; DataError where gold lies outside that."""
    gold = sample.gold
    if gold.boxes or gold.points or gold.track:
        if not media or media[0].kind == "audio":
            kind = "box" if gold.boxes else "point" if gold.points else "track"
            place = "boxes.0" if gold.boxes else "points.0" if gold.points else "track.0"
            raise DataError(f"{place}: the row has a gold {kind} but no image{' or video first' if media else ''}")
        sample = _absolute(sample, media[0].frame.original)
        _check_places(sample.gold, media[0].frame.original)
    if gold.spans or gold.track:
        _check_times(gold, media)
    return sample


def _absolute(sample: Sample, size: Size) -> Sample:
    if RELATIVE not in sample.metadata:
        return sample
    w, h = size
    gold = replace(
        sample.gold,
        boxes=tuple((x1 * w, y1 * h, x2 * w, y2 * h) for x1, y1, x2, y2 in sample.gold.boxes),
        points=tuple((x * w, y * h) for x, y in sample.gold.points),
    )
    rest = {key: value for key, value in sample.metadata.items() if key != RELATIVE}
    return replace(sample, gold=gold, metadata=rest)


def _check_places(gold: Gold, size: Size) -> None:
    boxes = [(f"boxes.{number}", one) for number, one in enumerate(gold.boxes)]
    boxes += [(f"track.{number}", one) for number, (_, one) in enumerate(gold.track)]
    for key, one in boxes:
        inside, reason = valid_box(one, size)
        if inside is None:
            raise DataError(f"{key}: unusable gold: {reason} of {size}; correct the row")
    for number, (x, y) in enumerate(gold.points):
        if not (0 <= x <= size[0] and 0 <= y <= size[1]):
            raise DataError(f"points.{number}: gold point ({x:g}, {y:g}) lies outside the image of {size}")


def _check_times(gold: Gold, media: Sequence[Media]) -> None:
    if not media or media[0].kind == "image":
        raise DataError("spans: the row has gold times but no video or audio first")
    if media[0].span is None:  # its length is not known
        return
    first, last = media[0].span
    spans: list[tuple[str, TimeSpan]] = [(f"spans.{number}", one) for number, one in enumerate(gold.spans)]
    spans += [(f"track.{number}", (time, time)) for number, (time, _) in enumerate(gold.track)]
    for key, (start, end) in spans:
        apart = start < end and not max(start, first) < min(end, last)
        if apart or start < first - SPAN_SLACK_S or end > last + SPAN_SLACK_S:
            raise DataError(f"{key}: gold {start:g} s to {end:g} s lies outside the medium's {first:g} s to {last:g} s")


def spans(values: Sequence[Any], key: str) -> tuple[TimeSpan, ...]:
    return each(values, time_span, key)
