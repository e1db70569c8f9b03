"""Does a trajectory keep to the form: every turn but the last ends in a call, the last in exactly one answer?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmrl.protocols import RewardContext
from mmrl.rollout.parse import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    BOXED,
    THINK_CLOSE,
    THINK_OPEN,
    AnswerForm,
    after_think,
    split_boxed,
)
from mmrl.scoring import score_each
from mmrl.types import Group, Sample, Score, Trajectory, Turn

MATH_END = "$.\\)]"
"""What may follow \\boxed{...}, beside white space: the end of its formula and of its sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """1 where the form is kept, else 0 with the reason."""

    think: Literal["required", "optional", "forbidden"] = "optional"
    """Whether a turn opens with <think>...</think>."""
    answer: AnswerForm = "tag"
    """How the answer is marked, as `episode.answer` says: <answer>...</answer> or \\boxed{...}."""
    call_close: str = "</tool_call>"
    """What ends a calling turn: text behind a call would cost nothing, and a policy drifts into it."""

    async def score(self, group: Group, context: RewardContext) -> list[Score]:
        return score_each(group, self._score)

    def _score(self, trajectory: Trajectory, sample: Sample) -> Score:
        fault = self._fault(trajectory)
        return Score.of(fault is None, fault or "")

    def _fault(self, trajectory: Trajectory) -> str | None:
        if not trajectory.turns:
            return "no turn"
        for number, turn in enumerate(trajectory.turns):
            fault = self._think_fault(turn.text)
            if fault is None and number < len(trajectory.turns) - 1:
                fault = self._call_fault(turn)
            if fault is not None:
                return f"turn {number}: {fault}"
        return self._answer_fault(trajectory)

    def _call_fault(self, turn: Turn) -> str | None:
        if turn.error or not turn.calls:
            return turn.error or "no call"
        return None if turn.text.rstrip().endswith(self.call_close) else f"nothing may follow {self.call_close}"

    def _answer_fault(self, trajectory: Trajectory) -> str | None:
        last = trajectory.turns[-1]
        if last.calls or last.error:
            return "the last turn does not answer"
        return (_tag_fault if self.answer == "tag" else _boxed_fault)(after_think(last.text))

    def _think_fault(self, text: str) -> str | None:
        opens = text.lstrip().startswith(THINK_OPEN)
        if self.think == "forbidden" and THINK_OPEN in text:
            return f"{THINK_OPEN} is not allowed"
        if self.think == "required" and not opens:
            return f"must open with {THINK_OPEN}"
        if text.count(THINK_OPEN) != text.count(THINK_CLOSE) or text.count(THINK_OPEN) > 1:
            return f"{THINK_OPEN} must be closed, and stand at most once"
        if THINK_OPEN in text and not opens:
            return f"{THINK_OPEN} must open the turn"
        return None


def _tag_fault(body: str) -> str | None:
    if body.count(ANSWER_OPEN) != 1 or body.count(ANSWER_CLOSE) != 1:
        return f"the last turn needs exactly one {ANSWER_OPEN}...{ANSWER_CLOSE}"
    if body.find(ANSWER_OPEN) > body.find(ANSWER_CLOSE) or not body.rstrip().endswith(ANSWER_CLOSE):
        return f"nothing may follow {ANSWER_CLOSE}"
    return None


def _boxed_fault(body: str) -> str | None:
    _, closed, rest = split_boxed(body)
    if body.count(BOXED) != 1 or not closed:
        return f"the last turn needs exactly one {BOXED}...}}"
    return f"nothing may follow {BOXED}...}}" if "".join(rest.split()).strip(MATH_END) else None
