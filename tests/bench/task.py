"""What is measured: a case's size, and its rows: one question about one image, nearly all of the prompt."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

QUESTION = "What is this?"
FRAME_TOKENS = 20
"""Tokens of the prompt beside those of the image: the question and the template, with the bench's tokenizer."""
SIDE = 28
"""Pixels along a side of a vision token."""
MAX_TOKENS = 1 << 17
"""Positions of a model; vision tokens of an image at most."""
MAX_PIXELS = MAX_TOKENS * SIDE * SIDE
Way = Literal["shared", "padded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    prompt_tokens: int
    group_size: int
    response_tokens: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """From "1300,8,32"."""
        prompt, group, response = (int(number) for number in text.split(","))
        return cls(prompt_tokens=prompt, group_size=group, response_tokens=response)

    def fitted(self) -> Case:
        """With the prompt's length as an image allows it, at most the one that was asked for."""
        height, width = grid(self.prompt_tokens - FRAME_TOKENS)
        return replace(self, prompt_tokens=height * width + FRAME_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All that a measuring process is told."""

    case: Case
    folder: Path
    """Holds model/ and, for whole steps, rows.jsonl with its images."""
    freeze_vision: bool
    threads: int
    dtype: str
    device: str
    learning_rate: float = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(Setup):
    """An update alone, without rollouts."""

    way: Way
    """Whether a group's rows share their prompt."""
    frames: int | None = None
    """The prompt's medium is a video of so many; None is an image."""
    checkpointing: bool = False
    """Whether activations are computed again in the backward."""


def write_rows(folder: Path, case: Case, count: int) -> None:
    """`count` rows, each with an image of its own: what one step computed is of no use to the next."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    height, width = grid(case.prompt_tokens - FRAME_TOKENS)
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(count):
            small = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(small).resize((width * SIDE, height * SIDE)).save(folder / f"{number}.png")
            message = {"role": "user", "content": f"<image>{QUESTION}"}
            file.write(json.dumps({"id": str(number), "messages": [message], "images": [f"{number}.png"]}) + "\n")


def grid(tokens: int) -> tuple[int, int]:
    """(h, w) of the largest picture of at most `tokens` vision tokens that is no more than twice as wide as high."""
    heights = range(max(1, math.isqrt(tokens // 2)), math.isqrt(tokens) + 1)
    height = max(heights, key=lambda h: (h * (tokens // h), h))
    return height, tokens // height
