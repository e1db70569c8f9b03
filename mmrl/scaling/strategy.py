"""What a test-time strategy is: pure decisions about one question, on what was seen of it so far.

A strategy knows nothing of models: it says which look to take next, and whose answer to take in the end. It wraps any
model, and each sample of a look is a whole episode, tool loop included. Trajectories come without scores: a strategy
cannot decide by what it is measured with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mmrl.types import MediaKind, Source, Trajectory

Fields = Mapping[MediaKind, Mapping[str, Any]]
"""Fields of processors that are replaced, by kind of medium: {"video": {"frames": 16}}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One way of asking the question.

    Example: Look(temperatures=(0.8, 0.95, 1.1), media={"video": {"frames": 16}}, title="16 frames")
    """

    temperatures: tuple[float, ...]
    """One sample each; 0 is greedy."""
    media: Fields = field(default_factory=dict)
    """How media are loaded for this look, where it differs from the run's own processors."""
    title: str = field(default="", compare=False)
    """For reports."""

    @property
    def key(self) -> str:
        """Equal for equal looks, whatever their title."""
        return json.dumps([self.temperatures, self.media], sort_keys=True, default=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A look and what it gave: one trajectory per temperature, in order."""

    look: Look
    trajectories: tuple[Trajectory, ...]
    frames: int = 0
    """Pictures shown, summed over samples: frames of videos and images, of the prompt and from tools."""

    @property
    def tokens(self) -> int:
        """Tokens of prompts, answers and tool results, summed over samples."""
        return sum(len(segment.ids) for trajectory in self.trajectories for segment in trajectory.segments)


class Strategy(Protocol):
    """A frozen dataclass; what a configuration names under evaluate.test_time."""

    def look(self, rounds: Sequence[Round]) -> Look | None:
        """What to play next for a question with these rounds behind it; None: decided. The first is never None."""
        ...

    def decide(self, rounds: Sequence[Round]) -> Trajectory:
        """The trajectory whose answer is taken."""
        ...


def frames_shown(trajectory: Trajectory) -> int:
    """Frames of videos and images that the model was shown, one that was shown twice counted twice."""
    return sum(
        _frames(trajectory, span.key)
        for segment in trajectory.segments
        if segment.source is not Source.MODEL
        for span in segment.spans
        if span.offset == 0  # a medium may be spread over several spans; one of them begins it
    )


def _frames(trajectory: Trajectory, key: str) -> int:
    medium = trajectory.media[key]
    if medium.kind == "audio":
        return 0
    return len(medium.data) if medium.kind == "video" else 1
