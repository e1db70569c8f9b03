"""Hermes-style tool calls: a JSON object between <tool_call> and </tool_call>."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mmrl.protocols import Tool
from mmrl.types import ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CALL_CHARS = 4000
"""A longer call is refused before it meets the JSON parser."""


def tools_prompt(tools: Sequence[Tool]) -> str:
    """The part of the system prompt that lists `tools` and says how to call them."""
    schemas = "\n".join(json.dumps(schema(tool), ensure_ascii=False) for tool in tools)
    return (
        "\n\n# Tools\n\nThese functions can be called while answering:\n<tools>\n"
        f"{schemas}\n</tools>\n\n"
        "To call one, write its name and arguments as JSON:\n"
        f'{OPEN}\n{{"name": ..., "arguments": {{...}}}}\n{CLOSE}\n'
        "The result follows in <tool_response></tool_response>."
    )


def schema(tool: Tool) -> dict[str, Any]:
    """The tool as an OpenAI-style function schema."""
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.arguments.model_json_schema(),
    }
    return {"type": "function", "function": function}


class Hermes:
    """Reads and writes calls. Parsing is a linear scan: what a model writes is untrusted."""

    def format_call(self, call: ToolCall) -> str:
        body = json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
        return f"{OPEN}\n{body}\n{CLOSE}"

    def parse(self, text: str) -> tuple[tuple[ToolCall, ...], str | None]:
        return scan_calls(text, parse_call)


def scan_calls(text: str, read: Callable[[str], ToolCall]) -> tuple[tuple[ToolCall, ...], str | None]:
    """(calls, error) as ToolCodec.parse gives them; `read` makes a call of what stands between the tags."""
    calls: list[ToolCall] = []
    at = text.find(OPEN)
    while at >= 0:
        end = text.find(CLOSE, at)
        if end < 0:
            return (), f"a {OPEN} is not closed by {CLOSE}"
        try:
            calls.append(read(text[at + len(OPEN) : end].strip()))
        except ValueError as error:
            return (), str(error)
        at = text.find(OPEN, end)
    return tuple(calls), None


def parse_call(body: str) -> ToolCall:
    """One call; ValueError says what is malformed, in words for the model."""
    if len(body) > MAX_CALL_CHARS:
        raise ValueError(f"the call is longer than {MAX_CALL_CHARS} characters")
    try:
        value = json.loads(body, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the call is not valid JSON: {error}") from None
    if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        raise ValueError('a call is an object with the keys "name" and "arguments"')
    name, arguments = value["name"], value["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError('"name" must be a string and "arguments" an object')
    return ToolCall(name=name, arguments=arguments)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result
