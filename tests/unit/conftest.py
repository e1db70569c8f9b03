"""Builders of the values that unit tests speak about."""

import asyncio
import json

import numpy as np
import pytest
from PIL import Image

from mmrl.protocols import RewardContext
from mmrl.types import CoordinateFrame, Gold, Group, Media, Message, Part, Sample, StopReason, Trajectory, Turn


@pytest.fixture
def shown():
    """shown(pixels, key=..., parent=...) is a Media of these pixels, shown as they are."""

    def make(pixels, key="a", parent=None):
        size = (pixels.shape[1], pixels.shape[0])
        frame = CoordinateFrame(original=size, seen=size)
        return Media(kind="image", key=key, data=pixels, frame=frame, original=pixels, parent=parent)

    return make


@pytest.fixture
def noise():
    """noise(width, height) is an H x W x 3 array in which no two places look alike."""

    def make(width, height, seed=0):
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture
def make_trajectory():
    """make_trajectory(turn, ..., media=(...)): a turn is a Turn, or the text of an answer, or None for no answer."""

    def make(*turns, media=(), index=0):
        return Trajectory(
            sample_id="s",
            index=index,
            segments=(),
            turns=tuple(
                turn if isinstance(turn, Turn) else Turn(segment=number, text=str(turn), answer=turn)
                for number, turn in enumerate(turns)
            ),
            stop=StopReason.ANSWERED,
            media={medium.key: medium for medium in media},
        )

    return make


@pytest.fixture
def make_group():
    """make_group(trajectory, ..., answer=gold answer, boxes=gold boxes)."""

    def make(*trajectories, answer=None, boxes=()):
        sample = Sample(
            id="s",
            messages=(Message(role="user", parts=(Part(text="Which?"),)),),
            gold=Gold(answer=answer, boxes=tuple(boxes)),
            where="rows.jsonl row 3",
        )
        return Group(sample=sample, trajectories=trajectories)

    return make


@pytest.fixture
def score_one(make_trajectory, make_group):
    """score_one(reward, turn, ..., answer=, boxes=, media=) is the Score of one trajectory with these turns."""

    def score(reward, *turns, answer=None, boxes=(), media=()):
        group = make_group(make_trajectory(*turns, media=media), answer=answer, boxes=boxes)
        (result,) = asyncio.run(reward.score(group, RewardContext(step=0)))
        return result

    return score


@pytest.fixture
def write_rows(tmp_path):
    """write_rows(row, ...) is the path of a JSON-lines file; a row that is text is written as it is."""

    def write(*rows, name="rows.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_png(tmp_path):
    """write_png(name, width, height) writes a grey image beside the rows."""

    def write(name, width=56, height=56):
        Image.new("RGB", (width, height), (90, 90, 90)).save(tmp_path / name)
        return tmp_path / name

    return write
