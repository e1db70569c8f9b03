"""What a reader is, and what readers share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from mmrl.data.gold import inside_answer
from mmrl.data.media import media_refs
from mmrl.data.prompt import KINDS, RawMessage, lay_out
from mmrl.types import Gold, MediaKind, MediaRef, Message, Part, Role, Sample, ToolCall

Columns = Mapping[str, Any]
Clues = dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a row comes from."""

    root: str
    """Folder of its media."""
    where: str
    """File and row, for error messages."""
    number: int


class Reader(Protocol):
    """Reads the rows of one format."""

    name: str
    shape: str
    """Its columns, in a few words."""

    def clues(self, row: Columns) -> Clues:
        """What speaks for this format, with points; empty where the row cannot be of it."""
        ...

    def read(self, row: Columns, place: Place) -> Sample:
        """ValueError says what is wrong with the row."""
        ...


def columns(row: Columns, points: int, *names: str) -> Clues:
    """Points for each of these columns that the row has."""
    return {name: points for name in names if row.get(name) is not None}


def foreign_sample(
    row: Columns,
    place: Place,
    messages: Sequence[RawMessage],
    media: Mapping[MediaKind, Sequence[MediaRef]],
    *,
    asked: Sequence[str],
    gold: Gold,
    demonstration: Sequence[Message] = (),
    fill: bool = False,
    metadata: Columns | None = None,
) -> Sample:
    """A sample of another framework's row, known by its number: published ids repeat.

    Args:
        asked: columns that the prompt and the media are made of; all others are its metadata, for user rewards.
    """
    laid, refs = lay_out(messages, media, place.root, fill=fill)
    rest = {key: value for key, value in row.items() if key not in asked}
    return Sample(
        id=str(place.number),
        messages=laid,
        media=refs,
        gold=gold,
        demonstration=tuple(demonstration),
        use_tools=tools_of(row) != [],
        where=place.where,
        metadata={**rest, **(metadata or {})},
    )


def media_columns(row: Columns, root: str) -> dict[MediaKind, list[MediaRef]]:
    """The media of `image`, `images`, `video`, `videos`, `audio` and `audios`."""
    return {
        kind: [ref for key in (kind, f"{kind}s") for ref in media_refs(row.get(key), kind, root, key)] for kind in KINDS
    }


MEDIA_COLUMNS = tuple(name for kind in KINDS for name in (kind, f"{kind}s"))


def chat(messages: object, key: str) -> list[RawMessage]:
    """Messages of the usual kind: objects with a role, a content and perhaps tool calls."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{key}: must be a list of at least one message")
    result: list[RawMessage] = []
    for number, message in enumerate(messages):
        read = _message(message, f"{key}.{number}")
        if read.role == "assistant" and read.calls and not read.content and result and result[-1].role == "assistant":
            result[-1] = replace(result[-1], calls=(*result[-1].calls, *read.calls))  # one turn, written as several
        else:
            result.append(read)
    return result


def split_chat(messages: Sequence[RawMessage]) -> tuple[list[RawMessage], list[RawMessage]]:
    """(the prompt, up to the last user message; what follows)."""
    last = max((number for number, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        raise ValueError("messages: there must be a user message")
    return list(messages[: last + 1]), list(messages[last + 1 :])


def demonstrated(messages: Sequence[RawMessage]) -> tuple[Message, ...]:
    """What an assistant did, as a worked example: tool results are left out, since the tools are run anew.

    An episode ends with an <answer>: a last turn that has none is taken as the answer itself.
    """
    turns = [message for message in messages if message.role == "assistant"]
    result = []
    for number, turn in enumerate(turns):
        text = plain_text(turn)
        if number == len(turns) - 1 and text and not turn.calls and "<answer>" not in text:
            text = f"<answer>{text}</answer>"
        result.append(Message(role="assistant", parts=(Part(text=text),) if text else (), tool_calls=turn.calls))
    return tuple(result)


def last_answer(messages: Sequence[RawMessage]) -> str | None:
    """The answer that the last assistant message gives."""
    turns = [message for message in messages if message.role == "assistant"]
    return inside_answer(plain_text(turns[-1])) if turns else None


def plain_text(message: RawMessage) -> str:
    """The text of a message without media."""
    if isinstance(message.content, str):
        return message.content
    return "".join(str(part.get("text") or "") for part in message.content if isinstance(part, dict))


def tools_of(row: Columns) -> list[Any] | None:
    """The column `tools`: a list, or the JSON text of one."""
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = as_json(tools, "tools")
    if tools is not None and not isinstance(tools, list):
        raise ValueError(f"tools: must be a list of tools, or one as JSON text, got {type(tools).__name__}")
    return tools


def as_json(text: str, key: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{key}: not valid JSON ({error})") from None


def tool_call(value: object, key: str) -> ToolCall:
    """{"name", "arguments"}, alone or as the "function" of an object; arguments may be JSON text."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    arguments = value.get("arguments") if isinstance(value, dict) else None
    if isinstance(arguments, str):
        arguments = as_json(arguments, f"{key}.arguments")
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not isinstance(arguments, dict):
        raise ValueError(f"{key}: a tool call must have a 'name' and 'arguments', got {value!r:.80}")
    return ToolCall(name=value["name"], arguments=arguments)


ROLES: dict[object, Role] = {role: role for role in ("system", "user", "assistant", "tool")}
ROLES |= {"tool_response": "tool", "tool_call": "assistant"}


def _message(message: object, key: str) -> RawMessage:
    if not isinstance(message, dict):
        raise ValueError(f"{key}: must be an object with 'role' and 'content', got {message!r:.80}")
    name = message.get("role")
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise ValueError(f"{key}.role: must be system, user, assistant or tool, got {name!r:.80}")
    content = message.get("content")
    if name == "tool_call":
        call = as_json(content, f"{key}.content") if isinstance(content, str) else content
        return RawMessage(role=role, content="", calls=(tool_call(call, f"{key}.content"),))
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise ValueError(f"{key}.tool_calls: must be a list, got {type(calls).__name__}")
    content = "" if content is None and calls else content
    if not isinstance(content, (str, list)):
        raise ValueError(f"{key}.content: must be text or a list of parts, got {type(content).__name__}")
    return RawMessage(role=role, content=content, calls=tuple(tool_call(c, f"{key}.tool_calls") for c in calls))
