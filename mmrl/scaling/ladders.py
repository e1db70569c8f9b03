"""Ladders: look again, more closely, until all samples agree.

The rule is that of sparse-to-dense video test-time scaling (Video-RTS, 2025): a rung draws m samples, sample r (from 0)
at temperature base + r * increment. Its majority (of equals, the answer seen first) is accepted where all m agree or
the rung is the last; else the next rung shows twice as much. Samples of earlier rungs are dropped, not pooled, and no
answer is a vote like any other, so that m failures agree. The published script also varies top_p by sample, sets top_k
and repetition penalties, and puts the number of the sample before the prompt. These are left out: log-probs are those
of the whole distribution here, and seeds alone make samples differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from mmrl.scaling.one_look import Samples, Temperature
from mmrl.scaling.strategy import Fields, Look, Round
from mmrl.scaling.votes import majority, unanimous
from mmrl.types import Trajectory

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """What ladders share; a subclass says what each rung shows."""

    samples: Samples = 5
    temperature: Temperature = 0.8
    """Of the first sample."""
    increment: Temperature = 0.15
    """Added from each sample to the next."""

    def rungs(self) -> list[tuple[str, Fields]]:
        """(title, replaced fields of the processors) of each rung, in order; at least one."""
        raise NotImplementedError

    def look(self, rounds: Sequence[Round]) -> Look | None:
        rungs = self.rungs()
        if len(rounds) == len(rungs) or (rounds and unanimous(rounds[-1].trajectories)):
            return None
        title, media = rungs[len(rounds)]
        temperatures = tuple(self.temperature + self.increment * sample for sample in range(self.samples))
        return Look(temperatures=temperatures, media=media, title=title)

    def decide(self, rounds: Sequence[Round]) -> Trajectory:
        return majority(rounds[-1].trajectories)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseToDense(Ladder):
    """Few frames of a video first, then twice as many, up to `densest`.

    The defaults are the published ones. `start` equal to `densest` is the plain vote over the densest look: its samples
    are those that the ladder's last rung draws.
    """

    start: Positive = 32
    """Frames of the first rung."""
    densest: Positive = 128
    """Frames at most; the last rung is the last doubling of `start` that does not pass it."""

    def __post_init__(self) -> None:
        check_order("start", self.start, "densest", self.densest)

    def rungs(self) -> list[tuple[str, Fields]]:
        counts = doublings(self.start, self.densest, 2)
        # Looks of one ladder nest: the frames of a sparse one are among those of the densest.
        return [(f"{n} frames", {"video": {"frames": n, "densest": counts[-1]}}) for n in counts]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolutionLadder(Ladder):
    """Small images first, then both sides twice as long, up to `max_pixels`.

    An image is never enlarged beyond `start_pixels`: a small one looks the same on every rung.
    """

    start_pixels: Positive = 320 * 28 * 28
    """Pixels of an image on the first rung."""
    max_pixels: Positive = 1280 * 28 * 28
    """Pixels at most; the last rung is the last fourfold of `start_pixels` that does not pass it."""

    def __post_init__(self) -> None:
        check_order("start_pixels", self.start_pixels, "max_pixels", self.max_pixels)

    def rungs(self) -> list[tuple[str, Fields]]:
        budgets = doublings(self.start_pixels, self.max_pixels, 4)
        return [(f"{n} pixels", {"image": {"min_pixels": self.start_pixels, "max_pixels": n}}) for n in budgets]


def doublings(start: int, most: int, factor: int) -> list[int]:
    """start, start * factor, ... up to `most`."""
    values = [start]
    while values[-1] * factor <= most:
        values.append(values[-1] * factor)
    return values


def check_order(name: str, value: int, most_name: str, most: int) -> None:
    if value > most:
        raise ValueError(f"{name} ({value}) may not be larger than {most_name} ({most})")
