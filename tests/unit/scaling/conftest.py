from copy import copy
from dataclasses import dataclass

import numpy as np
import pytest

from mmrl.cache.features import FeatureCache
from mmrl.data.dataset import Loaded
from mmrl.rollout.engine_hf import HFEngine
from mmrl.rollout.episode import Limits
from mmrl.rollout.runner import Runner
from mmrl.scaling.closer import closer
from mmrl.scaling.strategy import Look, Round
from mmrl.types import (
    CoordinateFrame,
    Media,
    MediaRef,
    Message,
    Part,
    Sample,
    Segment,
    Source,
    StopReason,
    Trajectory,
    Turn,
)


@pytest.fixture
def gave():
    """gave("B", None, ("7", -0.5)): a round of trajectories by their answers, some with the log-prob of each token."""

    def make(*answers, look=None):
        pairs = [answer if isinstance(answer, tuple) else (answer, -1.0) for answer in answers]
        trajectories = tuple(_trajectory(number, *pair) for number, pair in enumerate(pairs))
        return Round(look=look or Look(temperatures=(1.0,) * len(answers)), trajectories=trajectories)

    return make


def _trajectory(number, answer, *logprobs):
    return Trajectory(
        sample_id="s",
        index=number,
        segments=(Segment(source=Source.MODEL, ids=(7,) * len(logprobs), logprobs=logprobs),),
        turns=(Turn(segment=0, text=str(answer), answer=answer),),
        stop=StopReason.ANSWERED if answer is not None else StopReason.MAX_TOKENS,
    )


@pytest.fixture
def runner(checkpoint):
    """Plays a real tiny model, four tokens a turn. What it writes is read as an answer, "0", "1" or "2"."""
    family = copy(checkpoint.family)
    family.decode = lambda ids: f"<answer>{sum(ids) % 3}</answer>"
    features = FeatureCache(checkpoint.model, family)
    return Runner(
        engine=HFEngine(checkpoint.model, family, features, batch_size=64, deterministic=True),
        family=family,
        tools=(),
        limits=Limits(max_turns=1, max_calls=0, max_calls_per_turn=1, max_media=8, max_context=4096, max_turn_tokens=4),
        system="",
        error_chars=200,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Loads a video of noise by the number in its path; pairs of frames of a sparse look are among the dense one's."""

    frames: int = 4
    densest: int = 16

    def load(self, ref):
        rng = np.random.default_rng(int(ref.path))
        pixels = rng.integers(0, 256, (self.densest, 56, 56, 3), dtype=np.uint8)
        pairs = np.arange(0, self.densest // 2, self.densest // self.frames)
        shown = (2 * pairs[:, None] + [0, 1]).ravel()
        return Media(
            kind="video",
            key=f"clip-{ref.path}-{self.frames}",
            data=pixels[shown],
            frame=CoordinateFrame(original=(56, 56), seen=(56, 56)),
            times=tuple(shown / 2.0),
        )


@pytest.fixture
def clip():
    return Clip


@pytest.fixture
def ask():
    """ask("video", "0", "1", processor=...) is a Load of one question about each path."""

    def make(kind, *paths, processor, root=None):
        def load(number, fields):
            ref = MediaRef(kind=kind, path=str(paths[number]), root=root)
            media = closer({kind: processor}, fields)[kind].load(ref)
            parts = (Part(media=0), Part(text="Which?"))
            sample = Sample(id=f"q{number}", messages=(Message(role="user", parts=parts),), media=(ref,))
            return Loaded(sample=sample, media=(media,))

        return load

    return make
