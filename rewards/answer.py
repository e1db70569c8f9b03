"""Is the answer right? Compares a trajectory's answer with the row's gold answer, by one of three rules."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from mmrl.protocols import RewardContext
from mmrl.scoring import score_each
from mmrl.types import Group, Sample, Score, Trajectory

MAX_CHARS = 2000
"""A longer answer is no answer."""
NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][+-]?\d{1,3})?")
LETTER = re.compile(r"\(?([A-Za-z])(?:[).:]|\Z)")


def _missing(trajectory: Trajectory, sample: Sample) -> Score | None:
    """The score where there is nothing to compare; None where there is."""
    if sample.gold.answer is None:
        return Score.not_applicable("the row has no gold answer")
    if trajectory.answer is None:
        return Score.of(0.0, "no answer")
    if len(trajectory.answer) > MAX_CHARS:
        return Score.of(0.0, f"the answer is longer than {MAX_CHARS} characters")
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """1 where the answers are equal but for case and white space, else 0."""

    async def score(self, group: Group, context: RewardContext) -> list[Score]:
        return score_each(group, self._score)

    def _score(self, trajectory: Trajectory, sample: Sample) -> Score:
        missing = _missing(trajectory, sample)
        if missing is not None:
            return missing
        return Score.of(normalise(trajectory.answer or "") == normalise(sample.gold.answer or ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """1 where the same choice is named ("B", "(b)", "B. a cat"), else 0."""

    async def score(self, group: Group, context: RewardContext) -> list[Score]:
        return score_each(group, self._score)

    def _score(self, trajectory: Trajectory, sample: Sample) -> Score:
        missing = _missing(trajectory, sample)
        if missing is not None:
            return missing
        gold = letter(sample.gold.answer or "")
        if gold is None:
            return Score.error(f"{sample.where}: gold answer {sample.gold.answer!r} names no choice such as 'B'")
        return Score.of(letter(trajectory.answer or "") == gold)


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """1 where the numbers agree within tolerance, else 0."""

    absolute: float = 1e-6
    """Greatest difference that still counts."""
    relative: float = 0.0
    """The same, as a share of the gold number."""

    async def score(self, group: Group, context: RewardContext) -> list[Score]:
        return score_each(group, self._score)

    def _score(self, trajectory: Trajectory, sample: Sample) -> Score:
        missing = _missing(trajectory, sample)
        if missing is not None:
            return missing
        gold, value = number(sample.gold.answer or ""), number(trajectory.answer or "")
        if gold is None:
            return Score.error(f"{sample.where}: gold answer {sample.gold.answer!r} is not a number")
        if value is None:
            return Score.of(0.0, "the answer is not a number")
        return Score.of(abs(value - gold) <= max(self.absolute, self.relative * abs(gold)))


def normalise(text: str) -> str:
    return " ".join(text.casefold().split())


def letter(text: str) -> str | None:
    """The choice that a text opens with, in upper case."""
    found = LETTER.match(text.strip())
    return found.group(1).upper() if found else None


def number(text: str) -> float | None:
    """The number that a text opens with: "1,234.5", "-3/4", "12 %", "5 km"."""
    first, slash, second = text.strip().lstrip("$€£").partition("/")
    top = _leading(first)
    if slash and top is not None and NUMBER.fullmatch(first.strip()):
        bottom = _leading(second.strip())
        return top / bottom if bottom else None
    if top is not None and first.rstrip().endswith("%"):
        return top / 100
    return top


def _leading(text: str) -> float | None:
    found = NUMBER.match(text.strip())
    digits = found.group(0).replace(",", "") if found else ""
    if not any(character.isdigit() for character in digits) or digits.lstrip("+-")[:1] in "eE":
        return None
    value = float(digits)
    return value if math.isfinite(value) else None
