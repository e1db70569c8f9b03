"""When two answers are the same vote, and how votes are counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mmrl.types import Trajectory

CHOICE = re.compile(r"\(?([a-z])(?:[).:](?:\s(.*))?)?", re.DOTALL)
"""An answer to a multiple-choice question, with the text of the choice or without: "b", "(b)", "b. a cat"."""


def votes_of(trajectories: Sequence[Trajectory]) -> list[str | None]:
    """What each trajectory votes for: its answer but for case and white space, or the choice that it names.

    Answers that open with one letter name one choice where the texts behind it are the same, or there are none: "b"
    and "b. a cat" do, "x: 3" and "x: 5" do not. None, no answer, is a vote like any other.
    """
    answers = [None if t.answer is None else " ".join(t.answer.casefold().split()) for t in trajectories]
    choices = {choice for answer in answers if (choice := _choice(answer)) and choice[1]}
    texts = Counter(letter for letter, _ in choices)
    return [_vote(answer, texts) for answer in answers]


def _vote(answer: str | None, texts: Mapping[str, int]) -> str | None:
    """`texts` counts the different texts behind each letter."""
    choice = _choice(answer)
    if choice is None:
        return answer
    letter, text = choice
    return f"{letter}. {text}" if text and texts[letter] > 1 else letter


def _choice(answer: str | None) -> tuple[str, str] | None:
    """(letter, the text behind it) of an answer that names a choice."""
    found = CHOICE.fullmatch(answer or "")
    return (found[1], (found[2] or "").rstrip(".")) if found else None


def majority(trajectories: Sequence[Trajectory]) -> Trajectory:
    """The first trajectory that votes for the most common answer; of equally common ones, for the one seen first."""
    return heaviest(trajectories, [1.0] * len(trajectories))


def heaviest(trajectories: Sequence[Trajectory], weights: Iterable[float]) -> Trajectory:
    """The first trajectory that votes for the answer with the largest sum of weights; ties as in `majority`."""
    sums: dict[str | None, float] = {}
    firsts: dict[str | None, Trajectory] = {}
    for trajectory, vote, weight in zip(trajectories, votes_of(trajectories), weights, strict=True):
        sums[vote] = sums.get(vote, 0.0) + weight
        firsts.setdefault(vote, trajectory)
    return firsts[max(sums, key=lambda vote: sums[vote])]


def unanimous(trajectories: Sequence[Trajectory]) -> bool:
    return len(set(votes_of(trajectories))) == 1


def answered(trajectories: Sequence[Trajectory]) -> Sequence[Trajectory]:
    """Those that gave an answer; all of them where none did."""
    return [t for t in trajectories if t.answer is not None] or trajectories


def tally(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    """Votes of each answer in its first spelling, most common first; "" counts those without an answer."""
    spelling: dict[str | None, str] = {}
    counts: dict[str, int] = {}
    for trajectory, vote in zip(trajectories, votes_of(trajectories), strict=True):
        name = spelling.setdefault(vote, trajectory.answer or "")
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
