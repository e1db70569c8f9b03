"""Trajectories that look at places or answer with them."""

import asyncio

import numpy as np
import pytest

from mmrl.protocols import RewardContext
from mmrl.types import CoordinateFrame, Gold, Group, Media, Region, Sample, StopReason, Trajectory, Turn


@pytest.fixture(scope="session")  # makers without state: property tests may use them
def image():
    """image(original=(w, h), seen=(w, h), key=, parent=, offset=, scale=) is a Media of that geometry."""

    def make(original=(100, 100), seen=None, key="a", parent=None, offset=(0.0, 0.0), scale=None):
        seen = seen or original
        scale = scale or (original[0] / seen[0], original[1] / seen[1])
        frame = CoordinateFrame(original=original, seen=seen, offset=offset, scale=scale)
        return Media(kind="image", key=key, data=np.zeros((1, 1, 3), np.uint8), frame=frame, parent=parent)

    return make


@pytest.fixture(scope="session")
def video():
    """video(span, times=..., original=(w, h), key=, parent=) is a Media that covers this part of its file."""

    def make(span=(0.0, 60.0), times=(), original=(100, 100), key="v", parent=None):
        frame = CoordinateFrame(original=original, seen=original)
        data = np.zeros((1, 1, 1, 3), np.uint8)
        return Media(kind="video", key=key, data=data, frame=frame, times=times, span=span, parent=parent)

    return make


@pytest.fixture(scope="session")
def judge():
    """judge(reward, turn, ..., gold={...}, media=(...), space=, metadata=) is the Score of one trajectory.

    A turn is a Turn, or the text of an answer, or None for no answer.
    """

    def score(reward, *turns, gold, media, space=None, metadata=None):
        turns = [turn if isinstance(turn, Turn) else Turn(segment=0, text="", answer=turn) for turn in turns]
        trajectory = Trajectory(
            sample_id="s",
            index=0,
            segments=(),
            turns=tuple(turns),
            stop=StopReason.ANSWERED,
            media={medium.key: medium for medium in media},
        )
        row = Sample(id="s", messages=(), gold=Gold(**gold), where="rows.jsonl row 3", metadata=metadata or {})
        context = RewardContext(step=0) if space is None else RewardContext(step=0, space=space)
        (result,) = asyncio.run(reward.score(Group(sample=row, trajectories=(trajectory,)), context))
        return result

    return score


@pytest.fixture(scope="session")
def answered(judge, image):
    """answered(reward, answer, boxes=..., points=..., space=...) is the Score of an answer about a 100 x 100 image."""

    def score(reward, answer, *, space=None, media=None, metadata=None, **gold):
        return judge(reward, answer, gold=gold, media=media or (image(),), space=space, metadata=metadata)

    return score


@pytest.fixture(scope="session")
def asking():
    """asking(box=..., span=..., on="a") is a turn whose call looked there; asking() looked at nothing."""

    def make(on="a", **place):
        return Turn(segment=0, text="", regions=(Region(on=on, **place),) if place else ())

    return make
