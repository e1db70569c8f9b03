"""Worked examples as trajectories: an engine that "samples" what a row demonstrates.

The episode loop and the tools run as ever, so that the tokens of supervised training are the tokens of a rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrl.boxes import BoxField
from mmrl.protocols import Completion, ModelFamily, Request, Tool
from mmrl.types import Box, Media, Message, ToolCall


class Demonstrator:
    """Implements RolloutEngine for one episode.

    Boxes of a row are in original pixels; here they are put into the family's space, as the model would write them.
    """

    def __init__(self, script: Sequence[Message], family: ModelFamily, tools: Sequence[Tool]) -> None:
        self.script = list(script)
        self.family = family
        self.tools = {tool.name: tool for tool in tools}
        self.media: list[Media] = []

    def open(self, episode: str) -> None: ...

    def release(self, episode: str) -> None: ...

    async def generate(self, request: Request) -> Completion:
        self.media += request.media
        message = self.script.pop(0)
        calls = tuple(self._localise(call) for call in message.tool_calls)
        ids = self.family.encode_turn(Message(role="assistant", parts=message.parts, tool_calls=calls))
        return Completion(ids=ids, logprobs=(), version=0, stopped=True)

    def _localise(self, call: ToolCall) -> ToolCall:
        tool = self.tools.get(call.name)
        fields = tool.arguments.model_fields if tool else {}
        arguments: dict[str, Any] = dict(call.arguments)
        for name, field in fields.items():
            if name in arguments and any(isinstance(mark, BoxField) for mark in field.metadata):
                image = self.media[arguments.get("image", 0)]
                arguments[name] = spoken_box(arguments[name], image, self.family)
        return ToolCall(name=call.name, arguments=arguments)


def spoken_box(box: Box, image: Media, family: ModelFamily) -> list[int]:
    """A box in original pixels as a model writes it: whole numbers of its space, inside the image, not empty."""
    width, height = image.frame.seen
    x1, y1, x2, y2 = (round(v) for v in image.frame.to_seen(box))
    x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    seen = (float(x1), float(y1), float(min(max(x2, x1 + 1), width)), float(min(max(y2, y1 + 1), height)))
    return [round(v) for v in family.space.from_seen(seen, image.frame)]
