"""ms-swift's rows: messages, lists of media, `objects` for grounding, `solution` or the last reply as the truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from mmrl.data.gold import RELATIVE, box, gold_text, inside_answer, point
from mmrl.data.prompt import RawMessage
from mmrl.data.readers.base import (
    MEDIA_COLUMNS,
    Clues,
    Columns,
    Place,
    chat,
    columns,
    demonstrated,
    foreign_sample,
    last_answer,
    media_columns,
    plain_text,
    split_chat,
)
from mmrl.types import Box, Gold, Point, Sample

REF, BBOX = "<ref-object>", "<bbox>"


class Swift:
    name = "ms_swift"
    shape = "messages; images, videos, audios; solution, objects {ref, bbox}, tools (JSON)"

    def clues(self, row: Columns) -> Clues:
        messages = row.get("messages")
        if not isinstance(messages, list):
            return {}
        roles = {message.get("role") for message in messages if isinstance(message, dict)}
        last = messages[-1] if messages else None
        clues = columns(row, 2, "solution", "objects", "rejected_response")
        clues |= columns(row, 1, "tools") if isinstance(row.get("tools"), (str, list)) else {}
        clues |= {"tool messages": 2} if roles & {"tool", "tool_call", "tool_response"} else {}
        reply = isinstance(last, dict) and last.get("role") == "assistant"
        clues |= {"an assistant message last": 1} if reply else {}
        return {"messages": 1} | clues if clues else {}

    def read(self, row: Columns, place: Place) -> Sample:
        boxes, points, refs, relative = _objects(row.get("objects"))
        prompt, reply = split_chat(_named(chat(row.get("messages"), "messages"), iter(refs)))
        if any(BBOX in plain_text(message) for message in prompt):
            raise ValueError(f"messages: {BBOX} in a question is not read; write the box as text")
        answer = last_answer(reply)
        if any(BBOX in plain_text(message) for message in reply):  # its numbers are for the model's own space
            reply, answer = [], None
        if row.get("solution") is not None:
            text = gold_text(row["solution"], "solution")
            answer = inside_answer(text or "")
        return foreign_sample(
            row,
            place,
            prompt,
            media_columns(row, place.root),
            asked=("messages", *MEDIA_COLUMNS),
            gold=Gold(answer=answer, boxes=boxes, points=points),
            demonstration=demonstrated(reply),
            fill=True,
            metadata={RELATIVE: True} if relative else None,
        )


def _objects(value: object) -> tuple[tuple[Box, ...], tuple[Point, ...], list[str], bool]:
    """(boxes, points, names, whether the numbers are shares of the image's size)."""
    if value is None:
        return (), (), [], False
    if not isinstance(value, dict):
        raise ValueError(f"objects: must be an object with 'ref' and 'bbox', got {type(value).__name__}")
    places, names, images = (_list(value, key) for key in ("bbox", "ref", "image_id"))
    if any(type(image) is not int or image != 0 for image in images):
        raise ValueError("objects.image_id: gold boxes are those of the first image; put theirs first")
    kind = value.get("bbox_type") or "real"
    if kind not in ("real", "norm1"):
        raise ValueError(f"objects.bbox_type: must be real or norm1, got {kind!r:.80}")
    if not all(isinstance(name, str) for name in names):
        raise ValueError("objects.ref: must be a list of names")
    boxes, points = [], []
    for number, item in enumerate(places):
        if isinstance(item, list) and len(item) == 2:
            points.append(point(item, f"objects.bbox.{number}"))
        else:
            boxes.append(box(item, f"objects.bbox.{number}"))
    return tuple(boxes), tuple(points), names, kind == "norm1"


def _list(value: dict[str, Any], key: str) -> list[Any]:
    items = value.get(key) or []
    if not isinstance(items, list):
        raise ValueError(f"objects.{key}: must be a list, got {type(items).__name__}")
    return items


def _named(messages: Sequence[RawMessage], names: Iterable[str]) -> list[RawMessage]:
    """The messages with the names of the objects in place of their marks, in order."""
    left = iter(names)
    return [
        replace(message, content=_filled(message.content, left)) if isinstance(message.content, str) else message
        for message in messages
    ]


def _filled(text: str, names: Iterable[str]) -> str:
    first, *rest = text.split(REF)
    left = iter(names)
    for piece in rest:
        name = next(left, None)
        if name is None:
            raise ValueError(f"objects.ref: has fewer names than the messages have {REF}")
        first += name + piece
    return first
