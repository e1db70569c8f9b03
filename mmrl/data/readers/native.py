"""mmrl's own rows, one JSON object a line.

{"id": "7", "messages": [{"role": "user", "content": "<image>What is this?"}], "images": ["a.png"],
 "answer": "cat", "boxes": [[10, 20, 60, 80]]}

Prompt: `<image>`, `<video>` and `<audio>` stand for the next entry of `images`, `videos` and `audios`. An entry is a
path, or {"path": ..., "span": [start, end]} for a part of a video or an audio; for a video also {"path": ...,
"frames": n} for how many of its frames are shown, a list of pictures, or {"pictures": [...], "fps": n}.
`"use_audio_in_video": true` lets the n-th audio be heard with the n-th video, in place of an `<audio>`; where the row
has no audios, it is the video's own track. `subtitles` (an .srt or .vtt file, or a list of [start, end, text]) stand
before the question, one line each; see mmrl/data/subtitles.py for their number.
Gold: `answer`; in pixels of the first medium after rotation, `boxes` ([x1, y1, x2, y2]), `points` ([x, y]) and `track`
([[time, [x1, y1, x2, y2]], ...]); `spans` ([start, end]) in its seconds.
`demonstration` holds assistant messages for SFT, `"tools": false` asks the row without tools, `metadata` is kept for
rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmrl.data.gold import box, each, gold_text, moment, point, spans
from mmrl.data.media import media_refs
from mmrl.data.prompt import KINDS, RawMessage, lay_out
from mmrl.data.readers.base import Clues, Columns, Place, columns
from mmrl.data.subtitles import read_subtitles, subtitle_text, with_subtitles
from mmrl.resolve import suggest
from mmrl.types import Gold, MediaKind, MediaRef, Message, Part, Sample, ToolCall

GOLD = ("answer", "boxes", "points", "spans", "track")
OWN = (*GOLD, "demonstration", "metadata", "subtitles", "use_audio_in_video")
KEYS = ("id", "messages", "images", "videos", "audios", "tools", *OWN)
MAX_ID_CHARS = 200


class Native:
    name = "native"
    shape = "messages; images, videos, audios; answer, boxes, points, spans, track"

    def clues(self, row: Columns) -> Clues:
        messages = row.get("messages")
        if messages is None:
            return {}
        last = messages[-1] if isinstance(messages, list) and messages else None
        asks = not isinstance(last, dict) or last.get("role") not in ("assistant", "tool_call")
        return {"messages": 1} | columns(row, 2, *OWN) | ({"a user message last": 1} if asks else {})

    def read(self, row: Columns, place: Place) -> Sample:
        for key in row:
            if key not in KEYS:
                raise ValueError(f"unknown key {key!r}{suggest(key, KEYS)}")
        media = _media(row, place.root)
        answer = row.get("answer")
        if isinstance(answer, (list, dict)):
            raise ValueError(f"answer: must be text or a number, got {type(answer).__name__}")
        messages = _messages(_list(row, "messages"))
        sounds = _sounds(row, media)
        laid, refs = lay_out(messages, media, place.root, sounds=sounds)
        gold = Gold(
            answer=gold_text(answer, "answer"),
            boxes=each(_list(row, "boxes"), box, "boxes"),
            points=each(_list(row, "points"), point, "points"),
            spans=spans(_list(row, "spans"), "spans"),
            track=each(_list(row, "track"), moment, "track"),
        )
        return Sample(
            id=_id(row.get("id", place.number)),
            messages=_subtitled(row, laid, refs, place.root),
            media=refs,
            gold=gold,
            demonstration=tuple(_assistant(message) for message in _list(row, "demonstration")),
            use_tools=bool(row.get("tools", True)),
            where=place.where,
            metadata=_metadata(row),
        )


def _list(row: Columns, key: str) -> list[Any]:
    value = row.get(key, [])
    if not isinstance(value, list):
        raise ValueError(f"{key}: must be a list, got {type(value).__name__}")
    return value


def _id(value: object) -> str:
    text = str(value)
    if isinstance(value, (list, dict)) or len(text) > MAX_ID_CHARS or not text.isprintable():
        raise ValueError(f"id: must be plain text of at most {MAX_ID_CHARS} characters, got {value!r:.80}")
    return text


def _metadata(row: Columns) -> Mapping[str, Any]:
    value = row.get("metadata") or {}
    if not isinstance(value, dict):
        raise ValueError(f"metadata: must be an object, got {type(value).__name__}")
    return value


def _media(row: Columns, root: str) -> dict[MediaKind, list[MediaRef]]:
    images = _list(row, "images")
    if not all(isinstance(image, (str, dict)) and image for image in images):
        raise ValueError("images: must be a list of paths")
    return {kind: media_refs(_list(row, f"{kind}s"), kind, root, f"{kind}s") for kind in KINDS}


def _sounds(row: Columns, media: dict[MediaKind, list[MediaRef]]) -> list[MediaRef]:
    """What is heard with each video; taken out of `media`."""
    wanted = row.get("use_audio_in_video", False)
    if not isinstance(wanted, bool):
        raise ValueError(f"use_audio_in_video: must be true or false, got {wanted!r:.80}")
    if not wanted:
        return []
    videos, audios = media["video"], media["audio"]
    if not audios:
        return [_own_track(video, number) for number, video in enumerate(videos)]
    if len(audios) < len(videos):
        raise ValueError(f"use_audio_in_video: {len(videos)} video(s) but {len(audios)} audio(s); give each its own")
    media["audio"] = audios[len(videos) :]
    return audios[: len(videos)]


def _own_track(video: MediaRef, number: int) -> MediaRef:
    if video.pictures:
        raise ValueError(f"videos.{number}: pictures have no sound of their own; list it in 'audios'")
    return replace(video, kind="audio")


def _subtitled(row: Columns, messages: Sequence[Message], refs: Sequence[MediaRef], root: str) -> tuple[Message, ...]:
    if row.get("subtitles") is None:
        return tuple(messages)
    span = next((ref.span for ref in refs if ref.kind != "image"), None)
    return with_subtitles(messages, subtitle_text(read_subtitles(row["subtitles"], root), span))


def _messages(messages: list[Any]) -> list[RawMessage]:
    if not messages:
        raise ValueError("messages: must hold at least one message")
    return [_message(message, number) for number, message in enumerate(messages)]


def _message(message: Any, number: int) -> RawMessage:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise ValueError(f"messages.{number}: must be an object with 'role' and a text 'content'")
    if message.get("role") not in ("system", "user", "assistant"):
        raise ValueError(f"messages.{number}.role: must be system, user or assistant, got {message.get('role')!r:.80}")
    return RawMessage(role=message["role"], content=message["content"])


def _assistant(message: Any) -> Message:
    if not isinstance(message, dict) or message.get("role") != "assistant":
        raise ValueError("demonstration: must hold assistant messages only; tool results are made by running the tools")
    calls = message.get("tool_calls", [])
    if not isinstance(calls, list) or not all(
        isinstance(c, dict) and isinstance(c.get("name"), str) and isinstance(c.get("arguments"), dict) for c in calls
    ):
        raise ValueError("demonstration: tool_calls must be objects with 'name' and 'arguments'")
    text = str(message.get("content") or "")
    return Message(
        role="assistant",
        parts=(Part(text=text),) if text else (),
        tool_calls=tuple(ToolCall(name=call["name"], arguments=call["arguments"]) for call in calls),
    )
