"""The tools of a run: finds the tool of a call, validates its arguments, runs it, and words its refusals."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import ValidationError

from mmrl.models.qwen_xml import typed
from mmrl.protocols import Observation, Tool, ToolError, ToolState
from mmrl.types import ToolCall

MAX_PLACE = 40
"""Characters of the place of a wrong argument that the model is told."""


class Toolbox:
    """Runs calls. An error text is for the model to read, and never longer than `error_chars` characters."""

    def __init__(self, tools: Sequence[Tool], *, error_chars: int) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self.error_chars = error_chars

    async def run(self, call: ToolCall, state: ToolState) -> Observation:
        """Raises ToolError, worded and bounded, for a call that cannot be met."""
        try:
            tool = self._find(call.name)
            arguments = dict(call.arguments)
            if not call.typed:
                arguments = typed(arguments, tool.arguments.model_json_schema())
            return await tool.run(tool.arguments.model_validate(arguments), state)
        except ValidationError as error:
            raise ToolError(self.bounded(describe(error))) from None
        except ToolError as error:
            raise ToolError(self.bounded(str(error))) from None

    def bounded(self, error: str) -> str:
        text = f"Error: {error}"
        return text if len(text) <= self.error_chars else text[: self.error_chars - 3] + "..."

    def _find(self, name: str) -> Tool:
        if name not in self.tools:
            raise ToolError(f"there is no tool of that name; the tools are: {', '.join(self.tools) or 'none'}")
        return self.tools[name]


def describe(error: ValidationError) -> str:
    """The first problem of a validation error, without echoing what the model wrote: a key may be its own text."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = re.sub(r"[^\w.-]", "", ".".join(map(str, first["loc"])))[:MAX_PLACE]
    return f"{place or 'arguments'}: {first['msg']}"
