"""Media as rows name them: paths, bytes, data URIs, clips, pictures. Nothing is opened here, and no URL is followed."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmrl.types import MediaKind, MediaRef, TimeSpan

MAX_DATA_BYTES = 100_000_000
"""Encoded bytes that a row may hold for one medium."""
MAX_FRAMES = 10_000
"""Frames that a row may ask of a video."""
MIN_FPS, MAX_FPS = 1e-3, 1e3
"""Pictures in a second of a video that is given as pictures."""


def media_refs(value: object, kind: MediaKind, root: str, key: str) -> list[MediaRef]:
    """The media of a column: a list of them, a single one, or None."""
    if value is None:
        return []
    if isinstance(value, list):
        return [media_ref(item, kind, root, f"{key}.{number}") for number, item in enumerate(value)]
    return [media_ref(value, kind, root, key)]


def media_ref(value: object, kind: MediaKind, root: str, key: str) -> MediaRef:
    """One medium; ValueError names the key and what is wrong with it."""
    if isinstance(value, bytes):
        return MediaRef(kind=kind, data=_capped(value, key))
    if isinstance(value, str) and value.startswith("data:"):
        return MediaRef(kind=kind, data=data_uri(value, kind, key))
    if isinstance(value, str) and value:
        return MediaRef(kind=kind, path=_path(value, key), root=root)
    if isinstance(value, Mapping):
        return _from_mapping(value, kind, root, key)
    if isinstance(value, list) and value and kind == "video":
        pictures = [media_ref(item, "image", root, f"{key}.{number}").path for number, item in enumerate(value)]
        if None in pictures:
            raise ValueError(f"{key}: the pictures of a video must be paths")
        return MediaRef(kind=kind, pictures=tuple(path for path in pictures if path), root=root)
    raise ValueError(f"{key}: must name {_article(kind)} by a path, bytes or a data: URI, got {value!r:.80}")


def data_uri(text: str, kind: MediaKind, key: str) -> bytes:
    """The bytes of `data:image/png;base64,...`; its size is checked before anything is decoded."""
    header, comma, body = text.partition(",")
    mime, *options = header.removeprefix("data:").split(";")
    if not comma or options[-1:] != ["base64"]:
        raise ValueError(f"{key}: must be a data URI of the form data:{kind}/...;base64,..., got {text[:40]!r}")
    if not mime.startswith(f"{kind}/"):
        raise ValueError(f"{key}: must hold {_article(kind)}, got a data URI of {mime[:40]!r}")
    if len(body) // 4 * 3 > MAX_DATA_BYTES:
        raise ValueError(f"{key}: the data URI is larger than {MAX_DATA_BYTES} bytes; give the file by its path")
    try:
        return _capped(base64.b64decode(body, validate=True), key)
    except ValueError as error:
        raise ValueError(f"{key}: the data URI cannot be decoded ({error})") from None


def time_span(value: object, key: str) -> TimeSpan:
    """[start, end] in seconds."""
    start, end = numbers(value, 2, key, "a span must be two numbers [start, end]")
    if not (0 <= start < end):
        raise ValueError(f"{key}: a span must be finite with 0 <= start < end, got {value!r:.80}")
    return start, end


def numbers(value: object, count: int, key: str, what: str) -> list[float]:
    """`count` finite numbers, also as floats; ValueError says `what` was expected."""
    if not isinstance(value, list) or len(value) != count or any(type(v) not in (int, float) for v in value):
        raise ValueError(f"{key}: {what}, got {value!r:.80}")
    try:
        result = [float(v) for v in value]
    except OverflowError:
        result = [math.inf]
    if not all(map(math.isfinite, result)):
        raise ValueError(f"{key}: {what} that are finite, got {value!r:.80}")
    return result


def _from_mapping(value: Mapping[str, Any], kind: MediaKind, root: str, key: str) -> MediaRef:
    names = ("bytes", "path", kind, "url", f"{kind}_url", *(["pictures"] if kind == "video" else []))
    held = next((value[name] for name in names if value.get(name)), None)
    if held is None:
        raise ValueError(f"{key}: names no file; expected 'path', 'bytes' or {kind!r}, got {list(value)!r:.80}")
    ref = media_ref(held, kind, root, key)
    span, frames = _span(value, kind, key), value.get("frames", value.get("nframes"))
    if span is not None and kind == "image":
        raise ValueError(f"{key}: an image has no span")
    if frames is not None and (kind != "video" or type(frames) is not int or not 1 <= frames <= MAX_FRAMES):
        raise ValueError(f"{key}.frames: must be a number of frames of a video, 1 to {MAX_FRAMES}, got {frames!r:.80}")
    # What is named may be a mapping with a span or a number of frames of its own.
    ref = replace(ref, span=span or ref.span, frames=frames or ref.frames)
    fps = value.get("fps", value.get("sample_fps"))  # of a file, it says how to look at it, which is not the row's
    return ref if fps is None or not ref.pictures else replace(ref, picture_fps=_picture_fps(fps, f"{key}.fps"))


def _picture_fps(value: object, key: str) -> float:
    (fps,) = numbers([value], 1, key, "pictures in a second must be a number")
    if not MIN_FPS <= fps <= MAX_FPS:
        raise ValueError(f"{key}: pictures in a second must be {MIN_FPS:g} to {MAX_FPS:g}, got {fps:g}")
    return fps


def _span(value: Mapping[str, Any], kind: MediaKind, key: str) -> TimeSpan | None:
    """`span`, or start and end as Qwen's own message parts say them; a start without an end runs to the end."""
    if value.get("span") is not None:
        return time_span(value["span"], f"{key}.span")
    start, end = value.get(f"{kind}_start"), value.get(f"{kind}_end")
    if end is not None:
        return time_span([0 if start is None else start, end], f"{key}.span")
    if start is None:
        return None
    (first,) = numbers([start], 1, f"{key}.{kind}_start", "must be a number of seconds")
    if first < 0:
        raise ValueError(f"{key}.{kind}_start: must be at least 0, got {first:g}")
    return (first, math.inf)


def _path(text: str, key: str) -> str:
    if "://" in text[:32]:
        raise ValueError(f"{key}: URLs are not followed; download the file and give its path, got {text[:80]!r}")
    if any(not character.isprintable() and not character.isspace() or character in "\r\n" for character in text):
        raise ValueError(f"{key}: must be a path without control characters, got {text[:80]!r}")
    return text


def _capped(data: bytes, key: str) -> bytes:
    if not data or len(data) > MAX_DATA_BYTES:
        raise ValueError(f"{key}: must hold 1 to {MAX_DATA_BYTES} bytes, got {len(data)}")
    return data


def _article(kind: MediaKind) -> str:
    return "a video" if kind == "video" else f"an {kind}"
