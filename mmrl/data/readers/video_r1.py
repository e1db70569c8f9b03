"""Video-R1's rows: a problem of one of five types about one image or video."""

from __future__ import annotations

from typing import get_args

from mmrl.data.gold import gold_text, inside_answer
from mmrl.data.media import media_ref
from mmrl.data.prompt import RawMessage
from mmrl.data.readers.base import Clues, Columns, Place, columns, foreign_sample
from mmrl.types import Gold, MediaKind, Sample


class VideoR1:
    name = "video_r1"
    shape = "problem, problem_type, data_type, path, solution; options"

    def clues(self, row: Columns) -> Clues:
        if row.get("problem") is None or row.get("path") is None or row.get("solution") is None:
            return {}
        return columns(row, 2, "problem", "path", "solution", "data_type", "problem_type", "options")

    def read(self, row: Columns, place: Place) -> Sample:
        kind = next((one for one in get_args(MediaKind) if one == row.get("data_type")), None)
        if kind is None:
            raise ValueError(f"data_type: must be image, video or audio, got {row.get('data_type')!r:.80}")
        ref = media_ref(row.get("path"), kind, place.root, "path")
        solution = gold_text(row.get("solution"), "solution")
        return foreign_sample(
            row,
            place,
            [RawMessage(role="user", content=_question(row))],
            {kind: [ref]},
            asked=("problem", "options", "path"),
            gold=Gold(answer=None if solution is None else inside_answer(solution)),
            fill=True,
        )


def _question(row: Columns) -> str:
    problem, options = row.get("problem"), row.get("options") or []
    if not isinstance(problem, str):
        raise ValueError(f"problem: must be text, got {type(problem).__name__}")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError("options: must be a list of texts")
    return "\n".join([problem, "Options:", *options]) if options else problem
