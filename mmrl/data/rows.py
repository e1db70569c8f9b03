"""Reads rows: one JSON object a line, images by path beside the file.

{"id": "7", "messages": [{"role": "user", "content": "<image>What is this?"}], "images": ["a.png"],
 "answer": "cat", "boxes": [[10, 20, 60, 80]]}

`<image>` stands for the next entry of `images`. `boxes` are (x1, y1, x2, y2) in pixels of the first image, after EXIF
rotation. `demonstration` holds assistant messages for SFT, `"tools": false` asks the row without tools.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmrl.errors import DataError
from mmrl.resolve import suggest
from mmrl.types import Box, Gold, MediaRef, Message, Part, Sample, ToolCall

IMAGE = "<image>"
KEYS = ("id", "messages", "images", "answer", "boxes", "demonstration", "tools", "metadata")


def read_rows(path: str | Path) -> tuple[list[Sample], list[str]]:
    """(usable rows, one line per unusable row). DataError where the file itself cannot be read."""
    samples: list[Sample] = []
    errors: list[str] = []
    known: set[str] = set()
    for number, line in _lines(Path(path)):
        where = f"{path} row {number}"
        try:
            sample = read_row(line, Path(path).parent, where, str(number))
            if sample.id in known:
                raise ValueError(f"id {sample.id!r} is used twice; give the row another")
        except (ValueError, RecursionError) as error:
            errors.append(f"{where}: {error}")
            continue
        known.add(sample.id)
        samples.append(sample)
    return samples, errors


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from ((number, line) for number, line in enumerate(file) if line.strip())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def read_row(line: str, root: Path, where: str, default_id: str) -> Sample:
    """One row; ValueError says what is wrong with it."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    for key in row:
        if key not in KEYS:
            raise ValueError(f"unknown key {key!r}{suggest(key, KEYS)}")
    images = _list(row, "images")
    if not all(isinstance(image, str) and image for image in images):
        raise ValueError("images: must be a list of paths")
    messages = _messages(_list(row, "messages"), len(images))
    answer = row.get("answer")
    if answer is not None and (isinstance(answer, bool) or not isinstance(answer, (str, int, float))):
        raise ValueError(f"answer: must be text or a number, got {type(answer).__name__}")
    return Sample(
        id=str(row.get("id", default_id)),
        messages=messages,
        media=tuple(MediaRef(kind="image", path=image, root=str(root)) for image in images),
        gold=Gold(
            answer=None if answer is None else str(answer),
            boxes=tuple(_box(box, number) for number, box in enumerate(_list(row, "boxes"))),
        ),
        demonstration=tuple(_assistant(message) for message in _list(row, "demonstration")),
        use_tools=bool(row.get("tools", True)),
        where=where,
        metadata=row.get("metadata") or {},
    )


def _list(row: dict[str, Any], key: str) -> list[Any]:
    value = row.get(key, [])
    if not isinstance(value, list):
        raise ValueError(f"{key}: must be a list, got {type(value).__name__}")
    return value


def _messages(messages: list[Any], num_images: int) -> tuple[Message, ...]:
    if not messages:
        raise ValueError("messages: must hold at least one message")
    result: list[Message] = []
    seen = 0
    for number, message in enumerate(messages):
        role, content = _role_and_content(message, number)
        if IMAGE in content and role != "user":
            raise ValueError(f"messages.{number}: {IMAGE} may stand in user messages only")
        parts: list[Part] = []
        for piece, text in enumerate(content.split(IMAGE)):
            if piece:
                parts.append(Part(media=seen))
                seen += 1
            if text:
                parts.append(Part(text=text))
        result.append(Message(role=role, parts=tuple(parts)))
    if seen != num_images:
        raise ValueError(f"{seen} {IMAGE} placeholder(s) but {num_images} image(s); there must be one for each")
    return tuple(result)


def _role_and_content(message: Any, number: int) -> tuple[Any, str]:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise ValueError(f"messages.{number}: must be an object with 'role' and a text 'content'")
    if message.get("role") not in ("system", "user", "assistant"):
        raise ValueError(f"messages.{number}.role: must be system, user or assistant, got {message.get('role')!r}")
    return message["role"], message["content"]


def _box(box: Any, number: int) -> Box:
    if not isinstance(box, list) or len(box) != 4 or any(type(v) not in (int, float) for v in box):
        raise ValueError(f"boxes.{number}: gold box must be four numbers [x1, y1, x2, y2], got {box!r:.80}")
    try:
        x1, y1, x2, y2 = (float(v) for v in box)
    except OverflowError:  # a whole number of hundreds of digits
        x1 = y1 = x2 = y2 = math.inf
    if not all(map(math.isfinite, (x1, y1, x2, y2))) or not (x1 < x2 and y1 < y2):
        raise ValueError(f"boxes.{number}: gold box must be finite with x1 < x2 and y1 < y2, got {box!r:.80}")
    return (x1, y1, x2, y2)


def _assistant(message: Any) -> Message:
    if not isinstance(message, dict) or message.get("role") != "assistant":
        raise ValueError("demonstration: must hold assistant messages only; tool results are made by running the tools")
    calls = message.get("tool_calls", [])
    if not isinstance(calls, list) or not all(
        isinstance(c, dict) and isinstance(c.get("name"), str) and isinstance(c.get("arguments"), dict) for c in calls
    ):
        raise ValueError("demonstration: tool_calls must be objects with 'name' and 'arguments'")
    text = str(message.get("content") or "")
    return Message(
        role="assistant",
        parts=(Part(text=text),) if text else (),
        tool_calls=tuple(ToolCall(name=call["name"], arguments=call["arguments"]) for call in calls),
    )
