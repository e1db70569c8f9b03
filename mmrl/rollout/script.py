"""Fixed turns: what is asked first, whatever the model would do, before it may answer (MGPO, arXiv 2507.05920).

Each step reads a call out of a turn that was not written as one (a box as JSON), runs it, and goes on with a user
message: one where that gave something to look at, another where it did not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.rollout.parse import Action
from mmrl.types import Message, Part, ToolCall

FENCE, FENCE_JSON = "```", "```json"
MEDIA, QUESTION = "<media>", "{question}"
"""Stand in a template for what is shown and for the row's own question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One fixed turn."""

    tool: str
    """Name of the tool that is given what the turn says."""
    then: str
    """The user's next words; `<media>` is what the tool gave, `{question}` the row's question."""
    otherwise: str
    """The user's next words where the turn named nothing that can be shown; `<media>` is the row's first medium."""
    stop: tuple[str, ...] = ("]\n```",)
    """Strings that end the turn."""

    def read(self, text: str) -> Action:
        """The call of a turn: the first fenced block of JSON that is a list with one object (or that object)."""
        for block in fenced_blocks(text):
            try:
                value = json.loads(block)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, list) and len(value) == 1:
                value = value[0]
            if isinstance(value, dict):
                arguments = {key: item for key, item in value.items() if key != "label"}
                return Action(calls=(ToolCall(name=self.tool, arguments=arguments),))
        return Action(error="no fenced block of JSON with one object")


def fenced_blocks(text: str) -> list[str]:
    """Bodies of ```json ... ``` blocks, in order; one that is not closed is left out."""
    blocks = []
    at = text.find(FENCE_JSON)
    while at >= 0:
        start = at + len(FENCE_JSON)
        end = text.find(FENCE, start)
        if end < 0:
            break
        blocks.append(text[start:end])
        at = text.find(FENCE_JSON, end + len(FENCE))
    return blocks


def filled(template: str, question: str, media: Sequence[int]) -> Message:
    """A user message: the template's text, with all of `media` where `<media>` stands (at the end if nowhere)."""
    before, _, after = template.partition(MEDIA)
    parts: list[Any] = [before.replace(QUESTION, question), *media, after.replace(QUESTION, question)]
    return Message(
        role="user",
        parts=tuple(Part(text=part) if isinstance(part, str) else Part(media=part) for part in parts if part != ""),
    )
