"""EasyR1's rows: a question with placeholders, its answer, and lists of media."""

from __future__ import annotations

from mmrl.data.gold import gold_text
from mmrl.data.prompt import PLACEHOLDER, RawMessage
from mmrl.data.readers.base import MEDIA_COLUMNS, Clues, Columns, Place, columns, foreign_sample, media_columns
from mmrl.types import Gold, Sample


class EasyR1:
    name = "easyr1"
    shape = "problem or prompt (text with placeholders), answer; images, videos"

    def clues(self, row: Columns) -> Clues:
        question = row.get("problem") or row.get("prompt")
        if not isinstance(question, str) or row.get("answer") is None:
            return {}
        clues = columns(row, 1, "prompt", "answer", "images", "videos") | columns(row, 2, "problem")
        return clues | ({"placeholders in the text": 1} if PLACEHOLDER.search(question) else {})

    def read(self, row: Columns, place: Place) -> Sample:
        key = "problem" if row.get("problem") is not None else "prompt"
        question = row.get(key)
        if not isinstance(question, str):
            raise ValueError(f"{key}: must be text, got {type(question).__name__}")
        return foreign_sample(
            row,
            place,
            [RawMessage(role="user", content=question)],
            media_columns(row, place.root),
            asked=(key, *MEDIA_COLUMNS),
            gold=Gold(answer=gold_text(row.get("answer"), "answer")),
        )
