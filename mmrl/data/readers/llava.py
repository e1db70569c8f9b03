"""LLaVA's rows, which VLM-R1 and Qwen's fine-tuning share: `conversations` between a human and gpt."""

from __future__ import annotations

import json

from mmrl.data.gold import box, gold_text, inside_answer
from mmrl.data.prompt import RawMessage
from mmrl.data.readers.base import (
    MEDIA_COLUMNS,
    Clues,
    Columns,
    Place,
    columns,
    demonstrated,
    foreign_sample,
    last_answer,
    media_columns,
    split_chat,
)
from mmrl.types import Box, Gold, Role, Sample

SPEAKERS: dict[object, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
SPEAKERS |= {"system": "system"}


class Llava:
    name = "llava"
    shape = "conversations [{from, value}]; image, images or video; solution (boxes)"

    def clues(self, row: Columns) -> Clues:
        if not isinstance(row.get("conversations"), list):
            return {}
        return columns(row, 2, "conversations") | columns(row, 1, "image", "images", "video", "videos", "solution")

    def read(self, row: Columns, place: Place) -> Sample:
        turns = row.get("conversations")
        if not isinstance(turns, list) or not turns:
            raise ValueError("conversations: must be a list of at least one turn")
        prompt, reply = split_chat([_turn(turn, f"conversations.{number}") for number, turn in enumerate(turns)])
        boxes = solution_boxes(row.get("solution"))
        answer = last_answer(reply)
        if answer is None and not boxes:
            answer = inside_answer(gold_text(row.get("solution"), "solution") or "") or None
        return foreign_sample(
            row,
            place,
            prompt,
            media_columns(row, place.root),
            asked=("conversations", *MEDIA_COLUMNS),
            gold=Gold(answer=answer, boxes=boxes),
            demonstration=demonstrated(reply),
            fill=True,
        )


def solution_boxes(value: object) -> tuple[Box, ...]:
    """The boxes of a solution: [x1, y1, x2, y2], a list of such, or of {"bbox_2d": ...}; also as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(inside_answer(value))
        except (ValueError, RecursionError):
            return ()
    items = value if isinstance(value, list) else [value]
    if len(items) == 4 and all(type(item) in (int, float) for item in items):
        items = [items]
    places = [item.get("bbox_2d") if isinstance(item, dict) else item for item in items]
    if not all(isinstance(place, list) for place in places):
        return ()
    return tuple(box(place, f"solution.{number}") for number, place in enumerate(places))


def _turn(turn: object, key: str) -> RawMessage:
    speaker = turn.get("from") if isinstance(turn, dict) else None
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None or not isinstance(turn, dict):
        raise ValueError(f"{key}.from: must be human, gpt or system, got {speaker!r:.80}")
    text = gold_text(turn.get("value"), f"{key}.value")  # answers are numbers now and then
    if text is None:
        raise ValueError(f"{key}.value: must be text")
    return RawMessage(role=role, content=text)
