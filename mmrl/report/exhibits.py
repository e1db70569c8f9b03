"""What the page shows of a medium: a picture, a film (a video's frames on a line of time) or a sound."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrl.report.lines import Line
from mmrl.report.marks import Mark, marks
from mmrl.report.timeline import Timeline, axis_of, clock, timeline

PICTURE_SIDE = 240
"""Longest side of a picture on the page, CSS pixels; smaller pictures are enlarged."""
STRIP_WIDTH = 1060
"""Of a row of frames, CSS pixels."""
FRAME_WIDTHS = (84, 160)
"""Least and greatest width of a frame, CSS pixels."""
FRAME_HEIGHT = 120
"""Greatest height of a frame, CSS pixels."""
FRAME_GAP = 6
"""Between two frames, CSS pixels."""
MAX_SOUND_BYTES = 16_000_000
"""All sounds of a page together."""
MIME = {".png": "image/png", ".jpg": "image/jpeg", ".flac": "audio/flac"}


class Carried:
    """The files that a page carries within itself, each once however often it is shown."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "media"
        self.pictures: dict[str, str] = {}
        """data: URL of each picture, by the style class that shows it."""
        self._classes: dict[str, str] = {}
        self._sounds: set[str] = set()
        self._films: set[str] = set()
        self._free = MAX_SOUND_BYTES

    def picture(self, file: str | None) -> str:
        """Style class that shows the picture; empty where the file is missing."""
        name = Path(file or "").name
        if name not in self._classes:
            url = self._url(name)
            self._classes[name] = f"p{len(self.pictures)}" if url else ""
            if url:
                self.pictures[self._classes[name]] = url
        return self._classes[name]

    def sound(self, file: str | None) -> tuple[str, str]:
        """(data: URL, note); the URL is empty where the page cannot or need not carry the sound, and the note why."""
        if file is None:
            return "", "too long to be played here"
        name = Path(file).name
        if name in self._sounds:
            return "", "can be played further up"
        url = self._url(name)
        if not url:
            return "", "its file is missing"
        if len(url) > self._free:
            return "", "not played here: the page would grow too large"
        self._free -= len(url)
        self._sounds.add(name)
        return url, ""

    def shown_before(self, key: str) -> bool:
        """Whether the video was shown before; from now on it was."""
        before = key in self._films
        self._films.add(key)
        return before

    def _url(self, name: str) -> str:
        path = self.folder / name
        if path.suffix not in MIME or not path.is_file():
            return ""
        return f"data:{MIME[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Pixels as the model saw them, with the boxes that belong on them."""

    source: str
    """Style class; empty where the file is missing."""
    title: str
    caption: str
    width: int
    height: int
    """CSS pixels."""
    enlarged: bool
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """A video: its frames in order under a line of time."""

    title: str
    line: Timeline
    frames: tuple[Picture, ...]
    folded: bool
    """The page showed the same frames already, and nothing was asked on them here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    title: str
    line: Timeline
    source: str
    """data: URL."""
    note: str
    """Why there is no source."""


Exhibit = Picture | Film | Sound


def exhibit(line: Line, key: str, carried: Carried) -> Exhibit:
    """The medium `key` of a trajectory."""
    return {"video": _film, "audio": _sound}.get(line["media"][key]["kind"], _image)(line, key, carried)


def _image(line: Line, key: str, carried: Carried) -> Exhibit:
    medium = line["media"][key]
    times = medium["times"][:1]
    at = f" at {clock(times[0])}" if times else ""
    title = f"{medium['label']}{at}, {_sizes(medium)}"
    size = _zoomed(medium["seen"], PICTURE_SIDE, PICTURE_SIDE)
    return _picture(medium, carried.picture(medium["file"]), title, title, size, marks(line, key, times)[0])


def _film(line: Line, key: str, carried: Carried) -> Exhibit:
    medium = line["media"][key]
    seen, stored = len(medium["times"]), len(medium["frames"])
    count = f"{seen:,} frames" if seen == stored else f"{stored} of {seen:,} frames"
    frames = tuple(_frames(line, key, carried))
    asked = any(mark.kind == "asked" for frame in frames for mark in frame.marks)
    return Film(
        title=f"{medium['label'] or 'video'}, {_extent(medium)}, {count} {_sizes(medium)}",
        line=timeline(line, key),
        frames=frames,
        folded=carried.shown_before(key) and not asked,
    )


def _frames(line: Line, key: str, carried: Carried) -> Iterator[Picture]:
    medium = line["media"][key]
    times = [frame["time"] for frame in medium["frames"]]
    digits = 0 if all(time == int(time) for time in times) else 1
    size = _zoomed(medium["seen"], _frame_width(len(times)), FRAME_HEIGHT)
    for frame, found in zip(medium["frames"], marks(line, key, times), strict=False):  # no frames, one list of marks
        caption = clock(frame["time"], digits)
        yield _picture(medium, carried.picture(frame["file"]), f"frame at {caption}", caption, size, found)


def _frame_width(count: int) -> int:
    """Of `count` frames in rows of equal length."""
    least, greatest = FRAME_WIDTHS
    rows = max(1, math.ceil(count * (least + FRAME_GAP) / STRIP_WIDTH))
    columns = max(1, math.ceil(count / rows))
    return min(greatest, STRIP_WIDTH // columns - FRAME_GAP)


def _sound(line: Line, key: str, carried: Carried) -> Exhibit:
    medium = line["media"][key]
    source, note = carried.sound(medium["file"])
    title = f"{medium['label'] or 'sound'}, {_extent(medium)}"
    return Sound(title=title, line=timeline(line, key), source=source, note=note)


def _picture(
    medium: Line, source: str, title: str, caption: str, size: tuple[int, int], found: Sequence[Mark]
) -> Picture:
    return Picture(
        source=source,
        title=title,
        caption=caption,
        width=size[0],
        height=size[1],
        enlarged=size[0] > medium["seen"][0],
        marks=tuple(found),
    )


def _zoomed(seen: Sequence[int], width: int, height: int) -> tuple[int, int]:
    """`seen`, made as large as fits."""
    zoom = min(width / seen[0], height / seen[1])
    return round(seen[0] * zoom), round(seen[1] * zoom)


def _sizes(medium: Line) -> str:
    (width, height), (own_width, own_height) = medium["seen"], medium["original"]
    return f"shown at {width} x {height} (original {own_width} x {own_height})"


def _extent(medium: Line) -> str:
    axis = axis_of(medium)
    return f"{clock(axis.start)} to {clock(axis.end)}"
