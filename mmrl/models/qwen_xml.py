"""Tool calls of Qwen3.5: a function tag with a tag for each parameter, between <tool_call> and </tool_call>.

Values are text; the tool's schema says what they mean (`typed`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmrl.models.hermes import CLOSE, MAX_CALL_CHARS, OPEN, scan_calls
from mmrl.types import ToolCall

FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"


class QwenXml:
    """Reads and writes calls. Parsing is a linear scan: what a model writes is untrusted."""

    def format_call(self, call: ToolCall) -> str:
        values = {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in call.arguments.items()
        }
        lines = [f"{PARAMETER}{name}>\n{value}\n{PARAMETER_END}" for name, value in values.items()]
        return "\n".join([OPEN, f"{FUNCTION}{call.name}>", *lines, FUNCTION_END, CLOSE])

    def parse(self, text: str) -> tuple[tuple[ToolCall, ...], str | None]:
        return scan_calls(text, parse_call)


def parse_call(body: str) -> ToolCall:
    """One call; ValueError says what is malformed, in words for the model."""
    if len(body) > MAX_CALL_CHARS:
        raise ValueError(f"the call is longer than {MAX_CALL_CHARS} characters")
    if not (body.startswith(FUNCTION) and body.endswith(FUNCTION_END)):
        raise ValueError(f"a call is written {FUNCTION}name> ... {FUNCTION_END}")
    name, closed, rest = body[len(FUNCTION) : -len(FUNCTION_END)].partition(">")
    if not closed:
        raise ValueError(f"{FUNCTION} is not closed by >")
    arguments: dict[str, Any] = {}
    while rest := rest.strip():
        if not rest.startswith(PARAMETER):
            raise ValueError(f"expected {PARAMETER}name> between {FUNCTION}{name}> and {FUNCTION_END}")
        key, _, rest = rest[len(PARAMETER) :].partition(">")
        value, closed, rest = rest.partition(PARAMETER_END)
        if not closed:
            raise ValueError(f"{PARAMETER}{key}> is not closed by {PARAMETER_END}")
        if key in arguments:
            raise ValueError(f"the parameter {key} is given twice")
        arguments[key] = value.strip("\n")
    return ToolCall(name=name, arguments=arguments, typed=False)


def typed(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an untyped call as the tool's JSON schema has them; text that is no JSON stays text."""
    properties = schema.get("properties", {})
    return {name: _value(text, properties.get(name, {})) for name, text in arguments.items()}


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    if schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
