"""A video or an audio on a line of time: what was seen or heard, what was asked for, and what is gold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mmrl.report.lines import Line, ancestors, has_gold

UNITS = 1000
"""Width of the line's drawings, SVG units; ticks that fall on one unit are one tick."""
MAX_LABELS = 8
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
"""Seconds between two labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Seconds of a file, from one side of the page to the other."""

    start: float
    end: float

    def share(self, time: float) -> float:
        """0 at the start, 1 at the end; what lies outside is put on the edge."""
        return min(1.0, max(0.0, (time - self.start) / (self.end - self.start)))

    def meets(self, start: float, end: float) -> bool:
        return start <= self.end and end >= self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A stretch of the line, or a moment on it, in shares of its length."""

    kind: str
    """gold, asked (by the model) or shown (what was cut from here); with "moment" behind it for a moment."""
    left: float
    width: float
    title: str
    lane: int = 0
    """Bands of one lane do not overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    gold: tuple[Band, ...]
    looks: tuple[Band, ...]
    """Asked for, and shown in reply, in the order of the turns."""
    lanes: int
    labels: tuple[tuple[float, str], ...]
    """(share, time)."""
    ticks: str
    """SVG path: one for each frame that the model saw; UNITS wide, 1 high."""
    wave: str
    """SVG path: a sound's envelope; UNITS wide, from -1 to 1."""


def timeline(line: Line, key: str) -> Timeline:
    """The line of the video or audio `key`, over the part of the file that it covers."""
    medium = line["media"][key]
    axis = axis_of(medium)
    looks = list(_in_lanes([_bands(axis, *look) for look in _looks(line, key)]))
    spans = line["gold"]["spans"] if has_gold(line, key) else []
    return Timeline(
        gold=tuple(band for span in spans for band in _bands(axis, "gold", "gold", [span], [])),
        looks=tuple(looks),
        lanes=max((band.lane + 1 for band in looks), default=0),
        labels=tuple(_labels(axis)),
        ticks="".join(f"M{x},0V1" for x in sorted({round(UNITS * axis.share(time)) for time in medium["times"]})),
        wave=_wave(medium["envelope"]),
    )


def axis_of(medium: Line) -> Axis:
    """What the medium covers, of some length in any case."""
    start, end = medium["span"] or (0.0, max(medium["times"], default=0.0))
    return Axis(start=start, end=end if end > start else start + 1.0)


def clock(seconds: float, digits: int = 1) -> str:
    """75.25 is 1:15.2, with more hours than none 1:01:15.2."""
    units = round(seconds * 10**digits)
    whole, rest = divmod(abs(units), 10**digits)
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"
    return ("-" if units < 0 else "") + (f"{text}.{rest:0{digits}}" if digits else text)


def _looks(line: Line, key: str) -> Iterator[tuple[str, str, list[Sequence[float]], list[float]]]:
    """(kind, title, spans, moments) of everything that was asked of the medium and cut from it."""
    cut = [other for other in line["media"] if key in ancestors(line, other)]
    for number, turn in enumerate(line["turns"], start=1):
        for region in turn["regions"]:
            if region["on"] == key:
                yield "asked", f"turn {number} asked", [region["span"]] if region["span"] else [], region["times"]
        results = [other for other in turn["results"] if other in cut]
        cut = [other for other in cut if other not in results]
        yield "shown", f"turn {number} got", *_extent(line, results)
    yield "shown", "shown", *_extent(line, cut)


def _extent(line: Line, keys: Sequence[str]) -> tuple[list[Sequence[float]], list[float]]:
    """Spans of the videos and audios among `keys`, and the times of the pictures."""
    media = [line["media"][key] for key in keys]
    spans = [medium["span"] for medium in media if medium["kind"] != "image" and medium["span"]]
    return spans, [time for medium in media if medium["kind"] == "image" for time in medium["times"]]


def _bands(axis: Axis, kind: str, title: str, spans: Sequence[Sequence[float]], moments: Sequence[float]) -> list[Band]:
    """What lies on the line."""
    found = []
    for start, end in spans:
        if axis.meets(start, end):
            left = axis.share(start)
            words = f"{title}: {clock(start)} to {clock(end)}"
            found.append(Band(kind=kind, left=left, width=axis.share(end) - left, title=words))
    for time in moments:
        if axis.meets(time, time):
            words = f"{title}: {clock(time)}"
            found.append(Band(kind=f"{kind} moment", left=axis.share(time), width=0.0, title=words))
    return found


def _in_lanes(looks: Sequence[Sequence[Band]]) -> Iterator[Band]:
    """Each look's bands in the first lane where nothing overlaps them."""
    ends: list[list[tuple[float, float]]] = []
    for bands in looks:
        # Moments are drawn a little wide.
        extents = [(band.left - 0.004, band.left + band.width + 0.004) for band in bands]
        lane = next((lane for lane, taken in enumerate(ends) if not _overlap(taken, extents)), len(ends))
        if lane == len(ends) and bands:
            ends.append([])
        if bands:
            ends[lane] += extents
        yield from (replace(band, lane=lane) for band in bands)


def _overlap(taken: Sequence[tuple[float, float]], extents: Sequence[tuple[float, float]]) -> bool:
    return any(a < d and c < b for a, b in taken for c, d in extents)


def _labels(axis: Axis) -> Iterator[tuple[float, str]]:
    """Round times along the line."""
    length = axis.end - axis.start
    step = next((step for step in STEPS if length / step <= MAX_LABELS), length / MAX_LABELS)
    for number in range(math.ceil(axis.start / step), math.floor(axis.end / step) + 1):
        yield axis.share(number * step), clock(number * step, 0 if step >= 1 else 1)


def _wave(envelope: Sequence[float]) -> str:
    """The envelope and its mirror image, as a closed outline."""
    if not envelope:
        return ""
    width = UNITS / len(envelope)
    top = [f"{(n + 0.5) * width:.1f},{-min(1.0, peak):.3f}" for n, peak in enumerate(envelope)]
    bottom = [f"{(n + 0.5) * width:.1f},{min(1.0, peak):.3f}" for n, peak in reversed(list(enumerate(envelope)))]
    return f"M{' L'.join([*top, *bottom])}Z"
