"""When two answers are the same vote, and how votes are counted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mmrl.types import Trajectory

CHOICE = re.compile(r"\(?([a-z])(?:[).:](?=\s|\Z)|\Z)")
"""How an answer to a multiple-choice question opens: "b", "(b)", "b. a cat"."""


def vote_of(trajectory: Trajectory) -> str | None:
    """What a trajectory votes for: its answer but for case and white space, or the choice that it names.

    None, no answer, is a vote like any other.
    """
    if trajectory.answer is None:
        return None
    text = " ".join(trajectory.answer.casefold().split())
    choice = CHOICE.match(text)
    return choice.group(1) if choice else text


def majority(trajectories: Sequence[Trajectory]) -> Trajectory:
    """The first trajectory that votes for the most common answer; of equally common ones, for the one seen first."""
    return heaviest(trajectories, [1.0] * len(trajectories))


def heaviest(trajectories: Sequence[Trajectory], weights: Iterable[float]) -> Trajectory:
    """The first trajectory that votes for the answer with the largest sum of weights; ties as in `majority`."""
    sums: dict[str | None, float] = {}
    firsts: dict[str | None, Trajectory] = {}
    for trajectory, weight in zip(trajectories, weights, strict=True):
        vote = vote_of(trajectory)
        sums[vote] = sums.get(vote, 0.0) + weight
        firsts.setdefault(vote, trajectory)
    return firsts[max(sums, key=lambda vote: sums[vote])]


def unanimous(trajectories: Sequence[Trajectory]) -> bool:
    return len({vote_of(trajectory) for trajectory in trajectories}) == 1


def answered(trajectories: Sequence[Trajectory]) -> Sequence[Trajectory]:
    """Those that gave an answer; all of them where none did."""
    return [t for t in trajectories if t.answer is not None] or trajectories


def tally(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    """Votes of each answer in its first spelling, most common first; "" counts those without an answer."""
    spelling: dict[str | None, str] = {}
    counts: dict[str, int] = {}
    for trajectory in trajectories:
        name = spelling.setdefault(vote_of(trajectory), trajectory.answer or "")
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
