"""TRL's rows: `prompt` as a chat or as text, media in their own columns or in the parts of messages."""

from __future__ import annotations

from mmrl.data.gold import gold_text, inside_answer
from mmrl.data.prompt import PLACEHOLDER, RawMessage
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
)
from mmrl.types import Gold, Sample

GOLD = ("solution", "answer", "ground_truth")


class Trl:
    name = "trl"
    shape = "prompt (text or a chat); image, images; solution, answer or ground_truth; completion, tools"

    def clues(self, row: Columns) -> Clues:
        prompt = row.get("prompt")
        if not isinstance(prompt, (str, list)):
            return {}
        clues = columns(row, 1, "prompt", "answer", "images", "ground_truth", "tools")
        clues |= columns(row, 2, "solution", "image", "completion")
        media = any(row.get(key) for key in MEDIA_COLUMNS)
        if isinstance(prompt, str):
            return clues | ({"media without placeholders": 1} if media and not PLACEHOLDER.search(prompt) else {})
        return clues | {"a chat": 1}

    def read(self, row: Columns, place: Place) -> Sample:
        prompt, completion = row.get("prompt"), row.get("completion")
        reply = _chat(completion, "completion", "assistant") if completion is not None else []
        key = next((key for key in GOLD if row.get(key) is not None), None)
        text = gold_text(row[key], key) if key else last_answer(reply)
        return foreign_sample(
            row,
            place,
            _chat(prompt, "prompt", "user"),
            media_columns(row, place.root),
            asked=("prompt", *MEDIA_COLUMNS),
            gold=Gold(answer=None if text is None else inside_answer(text)),
            demonstration=demonstrated(reply),
            fill=True,
        )


def _chat(value: object, key: str, role: str) -> list[RawMessage]:
    return chat([{"role": role, "content": value}] if isinstance(value, str) else value, key)
