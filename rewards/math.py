"""Is the answer mathematically equal to the gold answer? Judged by math-verify, in a process that can be killed."""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
import resource
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from mmrl.adapt.worker import CallError, CallTimeoutError, Worker
from mmrl.protocols import RewardContext
from mmrl.types import Group, Sample, Score, Trajectory

MAX_CHARS = 512
"""A longer answer is no answer."""
MAX_BYTES = 4 * 2**30
"""Of memory, for one comparison: the digits of a power tower have no other end."""
CACHED = 10_000
"""Verdicts that are remembered."""
DELIMITERS = ("$", r"\(", r"\[", r"\boxed")
NAMES = re.compile(
    r"\\(?:text|mathrm|operatorname|begin|end)\{[^{}]*\}|\\[A-Za-z]+|sqrt|sin|cos|tan|cot|sec|csc|log|exp|lim|max|min"
)
"""Words that are mathematics."""
BARE_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Math:
    """1 where the answer is equal to the gold answer as mathematics (1/2 is 0.5, x+1 is 1+x), else 0.

    LaTeX needs no dollar signs. A row whose gold answer cannot be read as mathematics is not scored. The package
    math-verify defines equality: 50% is both 0.5 and 50, and "x = 2" is 2.
    """

    timeout_s: float = 5.0
    """Of one comparison; an answer that takes longer is wrong."""

    def __post_init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError("needs the package math-verify: pip install math-verify")
        if self.timeout_s <= 0:
            raise ValueError("timeout_s must be more than 0 seconds")

    async def score(self, group: Group, context: RewardContext) -> list[Score]:
        return [await self._score(trajectory, group.sample) for trajectory in group.trajectories]

    async def _score(self, trajectory: Trajectory, sample: Sample) -> Score:
        if sample.gold.answer is None:
            return Score.not_applicable("the row has no gold answer")
        try:
            return await self._compare(sample.gold.answer, trajectory.answer)
        except CallError as error:
            return Score.error(f"{sample.where}: {error}")

    async def _compare(self, gold: str, answer: str | None) -> Score:
        judge = _judge(self.timeout_s)
        if len(gold) > MAX_CHARS or await judge.ask(gold) is not True:
            return Score.not_applicable("the gold answer cannot be read as mathematics")
        if answer is None:
            return Score.of(0.0, "no answer")
        if len(answer) > MAX_CHARS:
            return Score.of(0.0, f"the answer is longer than {MAX_CHARS} characters")
        verdict = await judge.ask(gold, answer)
        return Score.of(0.0, "took too long to compare") if verdict is None else Score.of(verdict)


class _Judge:
    """Asks `Equal` in its process, and remembers the verdicts."""

    def __init__(self, timeout_s: float) -> None:
        self.worker = Worker("mmrl.rewards.math:Equal", timeout_s=timeout_s)
        self.known: OrderedDict[tuple[str, ...], bool | None] = OrderedDict()

    async def ask(self, *texts: str) -> bool | None:
        """The verdict; None where it took too long."""
        if texts not in self.known:
            try:
                self.known[texts] = await self.worker.call(*texts)
            except CallTimeoutError:
                self.known[texts] = None
        self.known.move_to_end(texts)
        if len(self.known) > CACHED:
            self.known.popitem(last=False)
        return self.known[texts]


_judge = functools.cache(_Judge)
"""One process for all rewards of a time limit."""


class Equal:
    """The judge's side; made in the process that may be killed. Its time limit is its caller's."""

    def __init__(self) -> None:
        import math_verify  # noqa: F401 (takes a second, which no comparison should pay for)

        logging.disable(logging.WARNING)  # it warns that its own time limits are off
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))

    def __call__(self, gold: str, answer: str | None = None) -> bool:
        """Whether the two are equal; of one text, whether it can be read."""
        from math_verify import verify

        expected = read(gold)
        if answer is None:
            return any(not isinstance(expression, str) for expression in expected)
        return verify(expected, read(answer), timeout_seconds=None)


@functools.lru_cache(maxsize=1000)
def read(text: str) -> Any:
    """What math-verify reads in a text: expressions, then the text of the first.

    Mathematics is put between dollar signs, since only there is LaTeX read. A sentence is not: it would be read as a
    product of its letters; of a sentence only what stands out as mathematics is read.
    """
    from math_verify import parse

    text = BARE_PI.sub(r"\\pi", text.strip())
    sentence = re.search(r"[^\W\d_]{3}", NAMES.sub("", text))
    if not sentence and not any(mark in text for mark in DELIMITERS):
        text = f"${text}$"
    return parse(text, parsing_timeout=None)
