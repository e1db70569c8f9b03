"""What a model turn says: calls, an answer, or something malformed. Linear scans only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmrl.protocols import ToolCodec
from mmrl.types import ToolCall

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE, BOXED = "<answer>", "</answer>", "\\boxed{"
AnswerForm = Literal["tag", "boxed"]
"""How a final answer is marked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A parsed turn; at most one of `calls`, `answer` and `error` is set."""

    calls: tuple[ToolCall, ...] = ()
    answer: str | None = None
    error: str | None = None


def parse_turn(text: str, codec: ToolCodec, answer_form: AnswerForm = "tag") -> Action:
    """Read what follows the thought of a turn.

    A turn that both calls and answers is malformed: the answer could not have used the result.
    """
    text = after_think(text)
    calls, error = codec.parse(text)
    if error is not None:
        return Action(error=error)
    answer = find_answer(text) if answer_form == "tag" else find_boxed(text)
    if calls and answer is not None:
        return Action(error="a turn may call a tool or give the answer, not both")
    return Action(calls=calls, answer=answer)


def after_think(text: str) -> str:
    """What follows the last </think>; nothing of a thought that is not closed."""
    return text.rpartition(THINK_CLOSE)[2].partition(THINK_OPEN)[0]


def find_answer(text: str) -> str | None:
    """The text of the last complete <answer>...</answer>, stripped; None where there is none."""
    end = text.rfind(ANSWER_CLOSE)
    start = text.rfind(ANSWER_OPEN, 0, max(end, 0))
    if end < 0 or start < 0:
        return None
    return text[start + len(ANSWER_OPEN) : end].strip()


def find_boxed(text: str) -> str | None:
    """What stands in the last complete \\boxed{...}, stripped; None where there is none."""
    inside, closed, _ = split_boxed(text)
    return inside.strip() if closed else None


def split_boxed(text: str) -> tuple[str, str, str]:
    """(what stands in the last \\boxed{...}, the brace that closes it, what follows); the first is all if none does."""
    behind = text.rpartition(BOXED)[2] if BOXED in text else ""
    depth = 1
    for at, character in enumerate(behind):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return behind[:at], "}", behind[at + 1 :]
    return behind, "", ""
