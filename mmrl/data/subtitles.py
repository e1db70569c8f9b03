"""Subtitles as text of the prompt: .srt and .vtt files, or [start, end, text] in the row."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mmrl.data.media import time_span
from mmrl.types import Message, Part, TimeSpan

MAX_LINES = 256
"""Lines in a prompt; of more, as many are taken at even distances."""
MAX_LINE_CHARS = 200
"""Characters of a line's text; the rest is cut."""
MAX_FILE_BYTES = 4_000_000

Cue = tuple[float, float, str]
"""(start, end, text), seconds."""


def read_subtitles(value: object, root: str) -> list[Cue]:
    """The cues of a row, in order of time: the path of a file below `root`, or a list of [start, end, text]."""
    if isinstance(value, str):
        return sorted(parse_cues(_read(value, Path(root))))
    if not isinstance(value, list):
        raise ValueError(f"subtitles: must be a path or a list of [start, end, text], got {type(value).__name__}")
    return sorted(_cue(item, f"subtitles.{number}") for number, item in enumerate(value))


def parse_cues(text: str) -> list[Cue]:
    """The cues of an .srt or .vtt text. Blocks without a line of times (headers, notes, styles) are skipped."""
    cues = []
    for block in text.replace("\r\n", "\n").replace("\r", "\n").split("\n\n"):
        lines = block.strip("\n").split("\n")
        at = next((number for number, line in enumerate(lines) if "-->" in line), None)
        if at is None:
            continue
        left, _, right = lines[at].partition("-->")
        start, end = _seconds(left), _seconds(right.strip().partition(" ")[0])
        words = without_tags(" ".join(lines[at + 1 :]))
        if words and start < end:
            cues.append((start, end, words))
    return cues


def subtitle_text(cues: Sequence[Cue], span: TimeSpan | None = None) -> str:
    """One line each, "[12.3s - 15.0s] text"; only those that are shown in `span`."""
    shown = [cue for cue in cues if span is None or (cue[0] < span[1] and cue[1] > span[0])]
    if len(shown) > MAX_LINES:
        shown = [shown[number * len(shown) // MAX_LINES] for number in range(MAX_LINES)]
    return "".join(f"[{start:.1f}s - {end:.1f}s] {text[:MAX_LINE_CHARS]}\n" for start, end, text in shown)


def with_subtitles(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """The messages with `text` before the last text of the last user message, which is the question."""
    at = max((number for number, message in enumerate(messages) if message.role == "user"), default=None)
    if at is None or not text:
        return tuple(messages)
    parts = list(messages[at].parts)
    place = max((number for number, part in enumerate(parts) if part.text is not None), default=len(parts))
    parts.insert(place, Part(text=text))
    return (*messages[:at], replace(messages[at], parts=tuple(parts)), *messages[at + 1 :])


def without_tags(text: str) -> str:
    """Text without <i>, <c.red>, <00:01.000> and the like, white space made single."""
    kept: Iterable[str] = (piece.partition(">")[2] if ">" in piece else f"<{piece}" for piece in text.split("<")[1:])
    return " ".join("".join([text.partition("<")[0], *kept]).split())


def _read(name: str, root: Path) -> str:
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ValueError(f"subtitles: {name[:80]!r} leads out of its folder; move the file there")
    if path.suffix not in (".srt", ".vtt"):
        raise ValueError(f"subtitles: {name[:80]!r} must be an .srt or .vtt file")
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its other end.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_FILE_BYTES + 1) if regular else b""
    except OSError as error:
        raise ValueError(f"subtitles: {name[:80]!r} cannot be read ({error.strerror}); check the path") from None
    if not regular:
        raise ValueError(f"subtitles: {name[:80]!r} cannot be read (not a regular file); check the path")
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"subtitles: {name[:80]!r} is larger than {MAX_FILE_BYTES} bytes")
    return data.decode("utf-8-sig", errors="replace")


def _cue(item: object, key: str) -> Cue:
    if not isinstance(item, list) or len(item) != 3 or not isinstance(item[2], str):
        raise ValueError(f"{key}: must be [start, end, text], got {item!r:.80}")
    start, end = time_span(item[:2], key)
    return (start, end, " ".join(item[2].split()))


def _seconds(text: str) -> float:
    """Seconds of "01:02:03,456" or "02:03.456"."""
    *clock, seconds = text.strip().replace(",", ".").split(":")
    try:
        total = float(seconds)
        for factor, part in zip((60, 3600), reversed(clock), strict=False):
            total += factor * int(part)
    except (ValueError, OverflowError):
        raise ValueError(f"subtitles: {text.strip()[:40]!r} is not a time such as 00:01:02,500") from None
    return total
