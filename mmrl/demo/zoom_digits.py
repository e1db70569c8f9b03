"""The demo task: read the small handwritten digit in the red frame of a large canvas.

A canvas holds 4 x 4 coloured frames with one digit each (scikit-learn's bundled digits). The model first sees the
whole canvas at a quarter of its size, where a digit is three pixels high: it has to ask for the right region before it
can read. Everything is written to disk as ordinary files and rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmrl.demo.task import Task

CANVAS, GRID, FRAME, BORDER, PLATE, DIGIT = 448, 4, 88, 16, 16, 12
"""Sides in pixels: the canvas, a frame and its border, the plate that the digit stands on, the digit; GRID counts."""
CELL = CANVAS // GRID
SEEN = 112
"""Side of the canvas as the model first sees it, pixels."""
NUM_TRAIN_DIGITS = 1300
"""The first handwritten digits are for training; the other 497 are shown by validation and test rows only."""
RED, DARK = (220, 0, 0), 30
OTHERS = ((40, 60, 160), (40, 120, 60), (70, 70, 70), (20, 110, 120))
SYSTEM = "Look closer before you answer."
QUESTION = "Which digit is in the red frame?"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoomDigits(Task):
    """Makes the rows, the canvases and the tiny model."""

    train: int = 3000
    demonstrations: int = 1600
    validation: int = 200
    test: int = 1000
    """Rows of each file."""
    box_noise: float = 0.12
    """Standard deviation of the corners of a demonstrated box, in plate sides."""
    direct_share: float = 0.1
    """Share of demonstrations that answer at once, without tools."""

    def write_model(self, path: Path, seed: int) -> None:
        write_model(path, seed)

    def write_rows(self, root: Path) -> None:
        ink, labels = digits()
        seen, held_out = slice(NUM_TRAIN_DIGITS), slice(NUM_TRAIN_DIGITS, None)
        files = (
            ("demonstrations", self.demonstrations, seen),
            ("train", self.train, seen),
            ("validation", self.validation, held_out),
            ("test", self.test, held_out),
        )
        for number, (name, count, part) in enumerate(files):
            rng = np.random.default_rng([2026, number])
            (root / name).mkdir(parents=True, exist_ok=True)
            with (root / f"{name}.jsonl").open("w") as file:
                for row in range(count):
                    canvas = draw_canvas(ink[part], labels[part], rng)
                    Image.fromarray(canvas.pixels).save(root / name / f"{row}.png", compress_level=1)
                    entry = self._row(name, row, canvas)
                    if name == "demonstrations":
                        entry |= self._demonstration(canvas, rng)
                    file.write(json.dumps(entry) + "\n")

    def _row(self, name: str, row: int, canvas: Canvas) -> dict[str, Any]:
        return {
            "id": f"{name}-{row}",
            "messages": [{"role": "user", "content": f"<image>{QUESTION}"}],
            "images": [f"{name}/{row}.png"],
            "answer": str(canvas.answer),
            "boxes": [list(canvas.box)],
        }

    def _demonstration(self, canvas: Canvas, rng: np.random.Generator) -> dict[str, Any]:
        """A worked example: a zoom with a noisy box and the answer, or the answer alone."""
        answer = {"role": "assistant", "content": f"<answer>{canvas.answer}</answer>"}
        if rng.random() < self.direct_share:
            return {"demonstration": [answer], "tools": False}
        x1, y1, x2, y2 = np.array(canvas.box) + rng.normal(0, self.box_noise * PLATE, 4)
        # A drawn corner may pass its opposite one: such a box would not be a demonstration of anything.
        box = [x1, y1, max(x2, x1 + PLATE / 4), max(y2, y1 + PLATE / 4)]
        call = {"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [round(float(v), 2) for v in box]}}
        return {"demonstration": [{"role": "assistant", "content": "", "tool_calls": [call]}, answer]}


def write_model(path: Path, seed: int) -> None:
    """A tiny Qwen2.5-VL with random weights and a tokenizer of the demo's text, as an ordinary checkpoint."""
    from mmrl.demo.tiny_model import train_tokenizer, write_qwen2_5_vl

    write_qwen2_5_vl(train_tokenizer(corpus(), vocab_size=2000), path, seed=seed)


def corpus() -> Iterator[str]:
    """The demo's text, as the template renders it between control tokens."""
    from mmrl.models.hermes import tools_prompt
    from mmrl.tools.zoom import Zoom

    for number in range(SEEN + 1):
        yield f"system\n{SYSTEM}"
        yield f"system\n{SYSTEM}{tools_prompt([Zoom()])}"
        yield QUESTION
        box = ", ".join([str(number)] * 4)
        yield f'\n{{"name": "image_zoom_in_tool", "arguments": {{"bbox_2d": [{box}]}}}}\n'
        yield "user\n<tool_response>\n"
        yield "\n</tool_response>"
        yield "assistant\n"
        yield f"<answer>{number % 10}</answer>"


def digits() -> tuple[np.ndarray, np.ndarray]:
    """((N, DIGIT, DIGIT) ink in 0..1, (N,) labels), in the order of the data set."""
    from sklearn.datasets import load_digits

    data = load_digits()
    drawn = [Image.fromarray((ink * 255 / 16).astype(np.uint8)).resize((DIGIT, DIGIT)) for ink in data.images]
    return np.stack([np.asarray(ink, np.float32) / 255 for ink in drawn]), data.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    pixels: np.ndarray
    answer: int
    box: tuple[int, int, int, int]
    """The plate in the red frame."""


def draw_canvas(ink: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Canvas:
    """One canvas with 16 frames, the red one in a random cell."""
    pixels = paper()
    target = int(rng.integers(GRID * GRID))
    box, answer = (0, 0, 0, 0), 0
    for cell in range(GRID * GRID):
        digit = int(rng.integers(len(ink)))
        colour = RED if cell == target else OTHERS[rng.integers(len(OTHERS))]
        place = _draw_frame(pixels, cell, ink[digit], colour)
        if cell == target:
            box, answer = place, int(labels[digit])
    return Canvas(pixels=pixels, answer=answer, box=box)


def paper() -> np.ndarray:
    """(CANVAS, CANVAS, 3) uint8: paper lit from one side and tinted towards the bottom, so that every place differs."""
    shade = np.linspace(40, 215, CANVAS).astype(np.uint8)
    pixels = np.full((CANVAS, CANVAS, 3), 100, dtype=np.uint8)
    pixels[..., 1] = shade[None, :]
    pixels[..., 2] = shade[:, None]
    return pixels


def _draw_frame(
    pixels: np.ndarray, cell: int, ink: np.ndarray, colour: tuple[int, int, int]
) -> tuple[int, int, int, int]:
    """Draw a coloured frame with a digit in its middle; returns the box of the digit's plate."""
    left = cell % GRID * CELL + (CELL - FRAME) // 2
    top = cell // GRID * CELL + (CELL - FRAME) // 2
    pixels[top : top + FRAME, left : left + FRAME] = colour
    pixels[top + BORDER : top + FRAME - BORDER, left + BORDER : left + FRAME - BORDER] = DARK
    x, y = left + (FRAME - DIGIT) // 2, top + (FRAME - DIGIT) // 2
    pixels[y : y + DIGIT, x : x + DIGIT] = (DARK + ink * (255 - DARK))[..., None]
    margin = (PLATE - DIGIT) // 2
    return (x - margin, y - margin, x + DIGIT + margin, y + DIGIT + margin)
