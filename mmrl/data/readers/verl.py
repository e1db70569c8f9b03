"""verl's rows: a chat as `prompt`, and the truth inside `reward_model`."""

from __future__ import annotations

from mmrl.data.gold import gold_text
from mmrl.data.readers.base import MEDIA_COLUMNS, Clues, Columns, Place, chat, columns, foreign_sample, media_columns
from mmrl.types import Gold, Sample


class Verl:
    name = "verl"
    shape = "data_source, prompt (a chat), reward_model {ground_truth}, extra_info; images, videos"

    def clues(self, row: Columns) -> Clues:
        if not isinstance(row.get("prompt"), list) or not isinstance(row.get("reward_model"), dict):
            return {}
        return columns(row, 2, "reward_model", "data_source", "extra_info", "ability") | columns(row, 1, "prompt")

    def read(self, row: Columns, place: Place) -> Sample:
        truth = row.get("reward_model")
        if not isinstance(truth, dict):
            raise ValueError(f"reward_model: must be an object with 'ground_truth', got {truth!r:.80}")
        return foreign_sample(
            row,
            place,
            chat(row.get("prompt"), "prompt"),
            media_columns(row, place.root),
            asked=("prompt", *MEDIA_COLUMNS),
            gold=Gold(answer=gold_text(truth.get("ground_truth"), "reward_model.ground_truth")),
        )
