"""Messages with placeholders: which medium stands where, and the order of a sample's media."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from mmrl.data.media import media_ref
from mmrl.types import MediaKind, MediaRef, Message, Part, Role, ToolCall

KINDS: tuple[MediaKind, ...] = get_args(MediaKind)
PLACEHOLDER = re.compile("<(image|video|audio)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawMessage:
    """A message before its media are known. `content` is text with placeholders, or a list of typed parts."""

    role: Role
    content: Any
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where a medium stands. Without `ref` it is the next of its kind."""

    kind: MediaKind
    ref: MediaRef | None = None


Pieces = list[str | Slot]


def lay_out(
    messages: Sequence[RawMessage],
    media: Mapping[MediaKind, Sequence[MediaRef]],
    root: str,
    *,
    fill: bool = False,
    sounds: Sequence[MediaRef] = (),
) -> tuple[tuple[Message, ...], tuple[MediaRef, ...]]:
    """(messages, media in the order of their placeholders); ValueError where the two do not match.

    Args:
        media: what the placeholders stand for, by kind.
        root: folder of media that message parts name themselves.
        fill: media of a kind that has no placeholder at all are put before the first user message.
        sounds: the n-th is heard with the n-th video, and follows it in the order of media.
    """
    if not messages:
        raise ValueError("messages: must hold at least one message")
    bodies = [_pieces(message.content, number, root) for number, message in enumerate(messages)]
    if fill:
        _fill(messages, bodies, media)
    _check(messages, bodies, media)
    left = {kind: list(media.get(kind, ())) for kind in KINDS}
    refs: list[MediaRef] = []
    heard = list(sounds)
    result = []
    for message, body in zip(messages, bodies, strict=True):
        parts = tuple(_part(piece, left, heard, refs) for piece in body if piece)
        result.append(Message(role=message.role, parts=parts, tool_calls=message.calls))
    return tuple(result), tuple(refs)


def _part(
    piece: str | Slot, left: dict[MediaKind, list[MediaRef]], heard: list[MediaRef], refs: list[MediaRef]
) -> Part:
    if isinstance(piece, str):
        return Part(text=piece)
    refs.append(piece.ref or left[piece.kind].pop(0))
    place = len(refs) - 1
    if piece.kind == "video" and heard:
        refs.append(heard.pop(0))
        return Part(media=place, sound=place + 1)
    return Part(media=place)


def _pieces(content: object, number: int, root: str) -> Pieces:
    if isinstance(content, str):
        words = PLACEHOLDER.split(content)  # text, kind, text, kind, ..., text
        return [word if place % 2 == 0 else Slot(kind=_kind(word)) for place, word in enumerate(words)]
    if isinstance(content, list):
        return [_piece(part, f"messages.{number}.content.{place}", root) for place, part in enumerate(content)]
    raise ValueError(f"messages.{number}: content must be text or a list of parts, got {type(content).__name__}")


def _piece(part: object, key: str, root: str) -> str | Slot:
    if not isinstance(part, dict):
        raise ValueError(f"{key}: a part must be an object with a 'type', got {part!r:.80}")
    kind = str(part.get("type")).removesuffix("_url")
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise ValueError(f"{key}: a text part must hold 'text', got {text!r:.80}")
        if PLACEHOLDER.search(text):
            raise ValueError(f"{key}: a placeholder may not stand in the text of a part; give the medium its own part")
        return text
    if kind not in KINDS:
        raise ValueError(f"{key}.type: must be text, image, video or audio, got {part.get('type')!r:.80}")
    named = {name: value for name, value in part.items() if name not in ("type", "text") and value is not None}
    return Slot(kind=_kind(kind), ref=media_ref(named, _kind(kind), root, key) if named else None)


def _kind(word: str) -> MediaKind:
    return next(kind for kind in KINDS if kind == word)


def _fill(messages: Sequence[RawMessage], bodies: list[Pieces], media: Mapping[MediaKind, Sequence[MediaRef]]) -> None:
    first = next((number for number, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        return
    placed = {piece.kind for body in bodies for piece in body if isinstance(piece, Slot)}
    front = [Slot(kind=kind) for kind in KINDS if kind not in placed for _ in media.get(kind, ())]
    bodies[first] = [*front, *bodies[first]]


def _check(
    messages: Sequence[RawMessage], bodies: Sequence[Pieces], media: Mapping[MediaKind, Sequence[MediaRef]]
) -> None:
    for number, (message, body) in enumerate(zip(messages, bodies, strict=True)):
        slots = [piece for piece in body if isinstance(piece, Slot)]
        if slots and message.role != "user":
            raise ValueError(f"messages.{number}: <{slots[0].kind}> may stand in user messages only")
    for kind in KINDS:
        count = sum(isinstance(piece, Slot) and piece.kind == kind and not piece.ref for b in bodies for piece in b)
        given = len(media.get(kind, ()))
        if count != given:
            raise ValueError(f"{count} <{kind}> placeholder(s) but {given} {kind}(s); there must be one for each")
