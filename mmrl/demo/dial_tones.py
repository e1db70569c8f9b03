"""The audio demo's task: hear which keys of a telephone are pressed, through noise.

A clip holds a few key presses as a telephone sends them: two tones at once, one for the key's row and one for its
column (DTMF, ITU-T Q.23), at 8 kHz. Everything is written to disk as ordinary files and rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.demo.task import Task

RATE = 8000
"""Samples per second of the files."""
ROWS, COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477)
"""Tones in Hz."""
KEYS = "1234567890"
PLACES = dict(zip(KEYS, [(number // 3, number % 3) for number in range(9)] + [(3, 1)], strict=True))
"""(row, column) of each key."""
PRESSES = 3
PRESS_S, GAP_S = (0.14, 0.18), (0.06, 0.1)
"""Shortest and longest press, and silence before each."""
NOISE = (0.3, 0.8)
"""Standard deviation of the noise, in amplitudes of a tone."""
SYSTEM = "Listen closely."
QUESTION = "Which keys are pressed?"


@dataclass(frozen=True, slots=True, kw_only=True)
class DialTones(Task):
    """Makes the rows, the clips and the tiny model."""

    train: int = 3000
    demonstrations: int = 1600
    validation: int = 200
    test: int = 1000
    """Rows of each file."""

    def write_model(self, path: Path, seed: int) -> None:
        write_model(path, seed)

    def write_rows(self, root: Path) -> None:
        for number, name in enumerate(("demonstrations", "train", "validation", "test")):
            write_file(root, name, getattr(self, name), np.random.default_rng([2027, number]))


def write_file(root: Path, name: str, count: int, rng: np.random.Generator) -> None:
    """The rows of a file and their clips, in a folder of its name."""
    import soundfile

    (root / name).mkdir(parents=True, exist_ok=True)
    with (root / f"{name}.jsonl").open("w") as file:
        for row in range(count):
            keys = "".join(rng.choice(list(KEYS), PRESSES))
            path = f"{name}/{row}.wav"
            soundfile.write(root / path, dial(keys, rng), RATE)
            file.write(json.dumps(entry(f"{name}-{row}", path, keys, shown=name == "demonstrations")) + "\n")


def entry(name: str, path: str, keys: str, *, shown: bool) -> dict[str, Any]:
    """A row; with `shown`, its answer is demonstrated."""
    answer = " ".join(keys)
    row = {
        "id": name,
        "messages": [{"role": "user", "content": f"<audio>{QUESTION}"}],
        "audios": [path],
        "answer": answer,
    }
    demonstration = [{"role": "assistant", "content": f"<answer>{answer}</answer>"}]
    return row | ({"demonstration": demonstration} if shown else {})


def dial(keys: str, rng: np.random.Generator) -> np.ndarray:
    """(N,) float32 sound of `keys` in noise, at RATE."""
    parts = []
    for key in keys:
        row, column = PLACES[key]
        parts.append(np.zeros(round(RATE * rng.uniform(*GAP_S))))
        time = np.arange(round(RATE * rng.uniform(*PRESS_S))) / RATE
        low, high = (np.sin(2 * np.pi * (tone * time + rng.random())) for tone in (ROWS[row], COLUMNS[column]))
        parts.append(low + high)
    sound = np.concatenate(parts)
    sound += rng.normal(0, rng.uniform(*NOISE), len(sound))
    return (0.9 * sound / np.abs(sound).max()).astype(np.float32)


def write_model(path: Path, seed: int) -> None:
    """A tiny Qwen2.5-Omni with random weights and a tokenizer of the demo's text, as an ordinary checkpoint."""
    from mmrl.demo.tiny_model import OMNI_TOKENS, train_tokenizer, write_qwen2_5_omni

    write_qwen2_5_omni(train_tokenizer(corpus(), vocab_size=600, **OMNI_TOKENS), path, seed=seed)


def corpus() -> Iterator[str]:
    """The demo's text, as the template renders it between control tokens."""
    for key in KEYS:
        yield f"system\n{SYSTEM}"
        yield "user\n"
        yield QUESTION
        yield "assistant\n"
        yield f"<answer>{' '.join([key] * PRESSES)}</answer>"
