"""Reads places out of what a model wrote: boxes, points, time spans, timed boxes.

The text is hostile. Every scan is linear in its length, and nothing raises: whatever stands where a place should stand
and is none is `Refused`, in its order. Numbers are in whatever space the model speaks; nothing is known here of media.

Boxes: `[x1, y1, x2, y2]`, `{"bbox_2d": [...]}` (or "bbox"), lists of these, `(x1,y1),(x2,y2)` as Qwen2-VL writes it.
Points: `[x, y]`, `(x, y)`, `{"point_2d": [x, y]}` (or "point"), lists of these; four numbers are a box, which stands
for its centre, but `(x1,y1),(x2,y2)` are two points.
Spans: `[a, b]`, `{"start": a, "end": b}` (or "start_time", "end_time"), lists of these, and in plain words
"12.3s to 15s", "12.3 - 15.0 seconds", "00:12.30 to 00:15"; a time is seconds, mm:ss(.ff) or hh:mm:ss(.ff).
Timed boxes: a list of `{"time": t, "bbox_2d": [...]}`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mmrl.types import Box, Point, TimeSpan

MAX_PLACES = 1000
"""An answer that names more is refused as a whole."""
MAX_DEPTH = 8
"""Brackets within brackets."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Something that stands where a place should stand."""

    reason: str


PointOrBox = Point | Box

# Possessive quantifiers (++) give nothing back, so that no input makes these scan twice.
NUMBER = r"(?:[+-]?+(?:(?:\d++(?:\.\d*+)?+|\.\d++)(?:e[+-]?+\d++)?+|nan\b|inf(?:inity)?+\b))"
PAIR = rf"\(\s*+{NUMBER}\s*+,\s*+{NUMBER}\s*+\)"
TUPLE = rf"\(\s*+{NUMBER}\s*+(?:,\s*+{NUMBER}\s*+)*+\)"
PLACE = re.compile(rf"(?P<json>[\[{{])|(?P<corners>{PAIR}\s*+,?+\s*+{PAIR})|(?P<tuple>{TUPLE})", re.IGNORECASE)
NUMBERS = re.compile(NUMBER, re.IGNORECASE)
BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?+|[\[{(]|[\]})]', re.DOTALL)

TIME = r"-?+(?:(?:\d{1,3}+:)?\d{1,3}+:\d\d(?:\.\d++)?+|\d++(?:\.\d++)?+)"
UNIT = r"(?:\s*+(?:seconds|second|secs|sec|s)\b)"
TO = r"\s*+(?:to|until|till|and|[-\u2013\u2014~])\s*+"
SPAN = re.compile(
    rf"[\[(]\s*+(?P<a>{TIME}){UNIT}?+(?:\s*+,\s*+|{TO})(?P<b>{TIME}){UNIT}?+\s*+[\])]"
    rf"|(?P<json>[\[{{])"
    rf"|(?<![\w.:])(?P<start>{TIME})(?P<unit>{UNIT})?+{TO}(?P<end>{TIME})(?P<units>{UNIT})?+(?![\d:])",
    re.IGNORECASE,
)
ONE_TIME = re.compile(rf"\s*+({TIME}){UNIT}?+\s*+", re.IGNORECASE)


def read_boxes(text: str) -> list[Box | Refused]:
    """The boxes of a text, in order."""
    return _capped(_box(leaf) for value in _values(text) for leaf in _leaves(value, _is_corners))


def read_points(text: str) -> list[PointOrBox | Refused]:
    """The points of a text, in order; boxes too, which stand for their centres."""
    return _capped(_point(leaf) for value in _values(text) for leaf in _leaves(value))


def read_spans(text: str) -> list[TimeSpan | Refused]:
    """The time spans of a text, in seconds and in order."""
    return _capped(_span(leaf) for value in _span_values(text) for leaf in _leaves(value))


def read_track(text: str) -> list[tuple[float, Box] | Refused]:
    """The (time in seconds, box) of a text, in order."""
    return _capped(_timed_box(leaf) for value in _values(text) for leaf in _leaves(value, _is_corners))


def read_time(value: object) -> float | None:
    """Seconds: a number, or a text such as "12.3", "12.3 s", "01:02.5", "1:02:03"; None where it is no time."""
    if not isinstance(value, str):
        return value if type(value) is float and math.isfinite(value) else None
    found = ONE_TIME.fullmatch(value)
    return _seconds(found.group(1)) if found else None


def _seconds(time: str) -> float | None:
    *upper, last = time.removeprefix("-").split(":")
    lower = [float(part) for part in (*upper[1:], last)] if upper else []
    if any(part >= 60 for part in lower):
        return None
    seconds = 0.0
    for part in (*upper, last):
        seconds = seconds * 60 + float(part)
    return (-seconds if time.startswith("-") else seconds) if math.isfinite(seconds) else None


def _capped(places: Iterator[Any]) -> list[Any]:
    result = list(islice(places, MAX_PLACES + 1))
    return result if len(result) <= MAX_PLACES else [Refused(f"more than {MAX_PLACES} places")]


def _values(text: str) -> Iterator[Any]:
    """What stands in brackets: JSON values, and tuples as lists of numbers."""
    return _scan(text, PLACE, _tuple)


def _span_values(text: str) -> Iterator[Any]:
    """JSON values, and pairs of times as lists of two."""
    return _scan(text.strip(), SPAN, _times)


def _scan(text: str, pattern: re.Pattern[str], read: Callable[[re.Match[str]], Any]) -> Iterator[Any]:
    at = 0
    while found := pattern.search(text, at):
        if found.lastgroup == "json":
            at, value = _json(text, found.start())
        else:
            at, value = found.end(), read(found)
        if value is not None:
            yield value


def _tuple(found: re.Match[str]) -> list[Any]:
    numbers = [float(number) for number in NUMBERS.findall(found.group())]
    return [numbers[:2], numbers[2:]] if found.lastgroup == "corners" else numbers


def _times(found: re.Match[str]) -> list[Any] | None:
    """None for two numbers that nothing marks as times, such as "2-3 people"."""
    if found["a"]:
        return [found["a"], found["b"]]
    marked = found["unit"] or found["units"] or ":" in found.group()
    return [found["start"], found["end"]] if marked or found.span() == (0, len(found.string)) else None


def _json(text: str, start: int) -> tuple[int, Any]:
    """(where the bracket that opens at `start` closes, its value)."""
    depth = deepest = 0
    for token in BRACKET.finditer(text, start):
        depth += (token.group() in "[{(") - (token.group() in ")}]")
        deepest = max(deepest, depth)
        if depth == 0:
            break
    else:
        return len(text), Refused("a bracket is not closed")
    if deepest > MAX_DEPTH:
        return token.end(), Refused(f"brackets are nested more than {MAX_DEPTH} deep")
    body = text[start : token.end()].replace("(", "[").replace(")", "]")  # a list of tuples is one of lists
    try:
        return token.end(), json.loads(body, parse_int=float, strict=False)
    except ValueError:
        return token.end(), Refused("not JSON")


def _leaves(value: Any, is_leaf: Callable[[Any], bool] = lambda value: False) -> Iterator[Any]:
    """The places of a value: what lists of lists and of objects hold in the end."""
    if isinstance(value, list) and all(isinstance(item, (list, dict)) for item in value) and not is_leaf(value):
        for item in value:
            yield from _leaves(item, is_leaf)
    else:
        yield value


def _is_corners(value: Any) -> bool:
    """[[x1, y1], [x2, y2]]: where boxes are read, it is one."""
    return len(value) == 2 and all(isinstance(item, list) and len(item) == 2 for item in value)


def _box(value: Any) -> Box | Refused:
    if isinstance(value, dict):
        value = _field(value, "bbox_2d", "bbox")
    if isinstance(value, list) and _is_corners(value):
        value = [*value[0], *value[1]]
    return _numbers(value, 4, "a box must be four numbers [x1, y1, x2, y2]")


def _point(value: Any) -> PointOrBox | Refused:
    if isinstance(value, dict):
        value = _field(value, "point_2d", "point", "bbox_2d", "bbox")
    count = 4 if isinstance(value, list) and len(value) == 4 else 2
    return _numbers(value, count, "a point must be two numbers [x, y]")


def _span(value: Any) -> TimeSpan | Refused:
    if isinstance(value, Refused):
        return value
    if isinstance(value, dict):
        value = [_field(value, "start", "start_time"), _field(value, "end", "end_time")]
    if not isinstance(value, list) or len(value) != 2:
        return Refused("a span must be two times [start, end]")
    start, end = map(read_time, value)
    return Refused("a span must be two times [start, end]") if start is None or end is None else (start, end)


def _timed_box(value: Any) -> tuple[float, Box] | Refused:
    if isinstance(value, Refused):
        return value
    if not isinstance(value, dict):
        return Refused('a timed box must be {"time": seconds, "bbox_2d": [x1, y1, x2, y2]}')
    time, box = read_time(value.get("time")), _box(value)
    if time is None:
        return Refused("a timed box must have a time")
    return box if isinstance(box, Refused) else (time, box)


def _field(value: dict[str, Any], *names: str) -> Any:
    return next((value[name] for name in names if name in value), Refused(f"an object has no {names[0]}"))


def _numbers(value: Any, count: int, what: str) -> Any:
    """A tuple of `count` finite numbers. JSON gives floats only, so that a bool or a text is told apart."""
    if isinstance(value, Refused):
        return value
    if not isinstance(value, list) or len(value) != count or any(type(number) is not float for number in value):
        return Refused(what)
    return tuple(value) if all(map(math.isfinite, value)) else Refused(f"{what}, all finite")
