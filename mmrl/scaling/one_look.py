"""Strategies of one look: greedy, votes, and the best of k."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from mmrl.resolve import import_object
from mmrl.scaling.strategy import Look, Round
from mmrl.scaling.votes import answered, heaviest, majority
from mmrl.types import Source, Trajectory

Samples = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """One sample, each token the most likely one."""

    def look(self, rounds: Sequence[Round]) -> Look | None:
        return None if rounds else Look(temperatures=(0.0,), title="greedy")

    def decide(self, rounds: Sequence[Round]) -> Trajectory:
        return rounds[-1].trajectories[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """The most common of k answers (self-consistency, Wang et al. 2023). A sample without an answer has no vote."""

    samples: Samples = 8
    temperature: Temperature = 1.0

    def look(self, rounds: Sequence[Round]) -> Look | None:
        return None if rounds else one_look(self.samples, self.temperature)

    def decide(self, rounds: Sequence[Round]) -> Trajectory:
        return majority(answered(rounds[-1].trajectories))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceVote:
    """A vote in which each sample weighs as much as the model was sure of it.

    The weight is exp(mean log-prob of the model's own tokens): Wang et al. 2023, Self-Consistency, equation 1
    ("normalized weighted sum"). A sample without an answer has no vote.
    """

    samples: Samples = 8
    temperature: Temperature = 1.0

    def look(self, rounds: Sequence[Round]) -> Look | None:
        return None if rounds else one_look(self.samples, self.temperature)

    def decide(self, rounds: Sequence[Round]) -> Trajectory:
        voters = answered(rounds[-1].trajectories)
        return heaviest(voters, map(confidence, voters))


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfK:
    """The sample with the highest score; the first of equals. One without an answer counts only where none has one."""

    samples: Samples = 8
    temperature: Temperature = 1.0
    by: str = "confidence"
    """"confidence", or the function "package.module:name" or "path/to/file.py:name" of a Trajectory, to a number."""

    def __post_init__(self) -> None:
        self.score()  # a name that leads nowhere stops the run at once

    def score(self) -> Callable[[Trajectory], float]:
        return confidence if self.by == "confidence" else import_object(self.by)

    def look(self, rounds: Sequence[Round]) -> Look | None:
        return None if rounds else one_look(self.samples, self.temperature)

    def decide(self, rounds: Sequence[Round]) -> Trajectory:
        return max(answered(rounds[-1].trajectories), key=self.score())


def one_look(samples: int, temperature: float) -> Look:
    return Look(temperatures=(temperature,) * samples, title=f"{samples} samples")


def confidence(trajectory: Trajectory) -> float:
    """exp(mean log-prob of the tokens that the model wrote), 0..1; each at the temperature that it was sampled at."""
    logprobs = [value for s in trajectory.segments if s.source is Source.MODEL for value in s.logprobs]
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0
