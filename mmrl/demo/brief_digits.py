"""The video demo's task: find the moment of a clip at which a handwritten digit is shown, and read it.

A clip lasts over three minutes. Most of the time it shows a board of 4 x 4 tiles, one for each sixteenth of the clip;
for nine seconds it shows a digit instead (scikit-learn's bundled digits). For a while around that moment the tile of
its sixteenth is red. The model first sees a few small frames of the whole clip: it has to find one with a red tile and
ask for the right span. Some clips show the red tile for so short a time that only a denser look finds it. Everything is
written to disk as ordinary files and rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.demo.task import Task
from mmrl.demo.zoom_digits import NUM_TRAIN_DIGITS, digits

SIDE, TILE, PARTS, PART_S, FRAME_S = 112, 28, 16, 12, 3
"""Sides of a frame and of a tile, pixels; parts of a clip; seconds of a part, and of a frame."""
CLIP_S = PARTS * PART_S
SHOWN_S = 9
"""Seconds for which the digit is shown, within one part."""
MARKED_S = (16, 112)
"""Shortest and longest time for which the tile is red, seconds."""
LOOKS = {8: 0.5, 16: 0.3, 32: 0.1, 64: 0.1}
"""Frames of the looks at a clip that the model is trained on, and the share of each."""
RED, PLATE = (220, 0, 0), 30
SYSTEM = "Look closer before you answer."
QUESTION = "Which digit is shown?"


@dataclass(frozen=True, slots=True, kw_only=True)
class BriefDigits(Task):
    """Makes the rows, the clips and the tiny model."""

    train: int = 1200
    demonstrations: int = 64
    validation: int = 100
    test: int = 500
    """Rows of each file."""

    def write_model(self, path: Path, seed: int) -> None:
        write_model(path, seed)

    def write_rows(self, root: Path) -> None:
        for number, name in enumerate(("demonstrations", "train", "validation", "test")):
            self._write_file(root, name, number)

    def _write_file(self, root: Path, name: str, number: int) -> None:
        """The rows of a file and their clips, in a folder of its name."""
        rng = np.random.default_rng([2028, number])
        part = slice(NUM_TRAIN_DIGITS) if name in ("train", "demonstrations") else slice(NUM_TRAIN_DIGITS, None)
        ink, labels = (values[part] for values in digits())
        (root / name).mkdir(parents=True, exist_ok=True)
        clips = [draw_clip(len(ink), rng) for _ in range(getattr(self, name))]
        with ProcessPoolExecutor() as pool:
            paths = [root / name / f"{row}.mp4" for row in range(len(clips))]
            list(pool.map(write_clip, paths, clips, [ink[clip.digit] for clip in clips], chunksize=50))
        rows = [self._row(name, row, clip, int(labels[clip.digit]), rng) for row, clip in enumerate(clips)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def _row(self, name: str, row: int, clip: Clip, answer: int, rng: np.random.Generator) -> dict[str, Any]:
        video: dict[str, Any] = {"path": f"{name}/{row}.mp4"}
        entry: dict[str, Any] = {
            "id": f"{name}-{row}",
            "messages": [{"role": "user", "content": f"<video>{QUESTION}"}],
            "videos": [video],
            "answer": str(answer),
            "spans": [[clip.digit_at, clip.digit_at + SHOWN_S]],
        }
        if name in ("train", "demonstrations"):
            video["frames"] = int(rng.choice(list(LOOKS), p=list(LOOKS.values())))
        if name == "demonstrations":
            part = clip.digit_at // PART_S
            span = {"start_time": part * PART_S, "end_time": (part + 1) * PART_S}
            call = {"role": "assistant", "content": "", "tool_calls": [{"name": "crop_video", "arguments": span}]}
            entry["demonstration"] = [call, {"role": "assistant", "content": f"<answer>{answer}</answer>"}]
        return entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """What a clip shows, and when, in seconds."""

    digit: int
    """Index of the handwritten digit."""
    digit_at: int
    marked: tuple[int, int]
    """From when to when the tile is red."""
    seed: int


def draw_clip(num_digits: int, rng: np.random.Generator) -> Clip:
    part = int(rng.integers(PARTS))
    at = part * PART_S + FRAME_S * int(rng.integers((PART_S - SHOWN_S) // FRAME_S + 1))
    length = int(rng.integers(MARKED_S[0], MARKED_S[1] + 1))
    # The mark covers the digit's own time, wherever it starts.
    start = int(rng.integers(max(0, at + SHOWN_S - length), min(at, CLIP_S - length) + 1))
    return Clip(
        digit=int(rng.integers(num_digits)),
        digit_at=at,
        marked=(start, start + length),
        seed=int(rng.integers(2**31)),
    )


def write_clip(path: Path, clip: Clip, ink: np.ndarray) -> None:
    """An mp4 of a frame every FRAME_S seconds."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=Fraction(1, FRAME_S))
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.qmax = 3
        for pixels in frames(clip, ink):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())


def frames(clip: Clip, ink: np.ndarray) -> Iterator[np.ndarray]:
    """SIDE x SIDE x 3 uint8 each."""
    rng = np.random.default_rng(clip.seed)
    plain, marked, shown = board(None, rng), board(clip.digit_at // PART_S, rng), plate(ink)
    for second in range(0, CLIP_S, FRAME_S):
        if clip.digit_at <= second < clip.digit_at + SHOWN_S:
            yield shown
        else:
            yield marked if clip.marked[0] <= second < clip.marked[1] else plain


def board(red: int | None, rng: np.random.Generator) -> np.ndarray:
    """Sixteen tiles, the one numbered `red` in red; shades differ over the board, so that every place differs."""
    shade = np.linspace(40, 215, SIDE)
    pixels = np.full((SIDE, SIDE, 3), rng.integers(60, 140), dtype=np.uint8)
    pixels[..., 1] = shade[None, :]
    pixels[..., 2] = shade[:, None]
    pixels[::TILE] = pixels[:, ::TILE] = 0
    if red is not None:
        top, left = red // 4 * TILE, red % 4 * TILE
        pixels[top : top + TILE, left : left + TILE] = RED
    return pixels


def plate(ink: np.ndarray) -> np.ndarray:
    """The digit, large, on a dark plate."""
    large = np.kron(ink, np.ones((8, 8)))
    pixels = np.full((SIDE, SIDE), PLATE, dtype=np.uint8)
    margin = (SIDE - len(large)) // 2
    pixels[margin : margin + len(large), margin : margin + len(large)] = PLATE + large * (255 - PLATE)
    return np.repeat(pixels[..., None], 3, axis=2)


def write_model(path: Path, seed: int) -> None:
    """A tiny Qwen2.5-VL with random weights and a tokenizer of the demo's text, as an ordinary checkpoint."""
    from mmrl.demo.tiny_model import train_tokenizer, write_qwen2_5_vl

    write_qwen2_5_vl(train_tokenizer(corpus(), vocab_size=2000), path, seed=seed)


def corpus() -> Iterator[str]:
    """The demo's text, as the template renders it between control tokens and tags."""
    from mmrl.models.hermes import CLOSE, OPEN, tools_prompt
    from mmrl.tools.crop_video import CropVideo

    system = f"system\n{SYSTEM}{tools_prompt([CropVideo()])}".replace(CLOSE, OPEN).split(OPEN)
    for number in range(0, CLIP_S + 1, PART_S):
        yield from system
        yield QUESTION
        yield f'\n{{"name": "crop_video", "arguments": {{"start_time": {number}, "end_time": {number}}}}}\n'
        yield "user\n<tool_response>\n"
        yield "\n</tool_response>"
        yield "assistant\n"
        yield f"<answer>{number // PART_S % 10}</answer>"
