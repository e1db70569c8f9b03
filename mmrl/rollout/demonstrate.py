"""Worked examples as trajectories: an engine that "samples" what a row demonstrates.

The episode loop and the tools run as ever, so that the tokens of supervised training are the tokens of a rollout.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmrl.protocols import Completion, ModelFamily, Request, SpeaksPlaces, Tool, ToolState
from mmrl.types import Media, Message, ToolCall


class Demonstrator:
    """Implements RolloutEngine for one episode.

    Places in a row are in original pixels; here each tool puts them into the space in which the model would write them.
    """

    def __init__(self, script: Sequence[Message], family: ModelFamily, tools: Sequence[Tool]) -> None:
        self.script = list(script)
        self.family = family
        self.tools = {tool.name: tool for tool in tools}
        self.media: list[Media] = []

    def open(self, episode: str, group: str) -> None: ...

    def release(self, episode: str) -> None: ...

    async def generate(self, request: Request) -> Completion:
        self.media += request.media
        message = self.script.pop(0)
        calls = tuple(self._localise(call) for call in message.tool_calls)
        ids = self.family.encode_turn(Message(role="assistant", parts=message.parts, tool_calls=calls))
        return Completion(ids=ids, logprobs=(), version=0, stopped=True)

    def _localise(self, call: ToolCall) -> ToolCall:
        tool = self.tools.get(call.name)
        if not isinstance(tool, SpeaksPlaces):
            return call
        state = ToolState(media=tuple(self.media), space=self.family.space)
        return ToolCall(name=call.name, arguments=tool.spoken(dict(call.arguments), state))
