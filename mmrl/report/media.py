"""Media in a run's directory: pictures, thumbnails of frames and sound, and what a line of the stream says of each."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from mmrl.types import SAMPLE_RATE, Media, MediaRef, Trajectory

MAX_SIDE = 512
"""Pictures are stored no larger than this, pixels."""
FRAME_SIDE = 160
"""Frames of videos are stored no larger than this, pixels."""
MAX_FRAMES = 64
"""Frames stored of a video, evenly chosen; those at which something was asked come on top."""
MAX_MOMENTS = 16
"""Frames stored on top."""
MAX_BINS = 400
"""Values of a sound's envelope."""
MAX_SOUND_BYTES = 1_000_000
"""A longer sound is stored as its envelope only."""


def save_medium(run_dir: Path, medium: Media, moments: Sequence[float] = ()) -> dict[str, Any]:
    """Store what a report shows of a medium under `run_dir`/media; returns what a line says of it.

    Args:
        moments: seconds at which something was asked or is known; the frames nearest to them are stored too.
    """
    return {**_about(medium), **_save(run_dir / "media", medium, moments)}


def moments_of(trajectory: Trajectory, track: Sequence[tuple[float, Any]]) -> list[float]:
    """When a box lies on a video, asked or gold: at most MAX_MOMENTS seconds."""
    asked = [region for turn in trajectory.turns for region in turn.regions if region.box is not None]
    moments = [time for region in asked for time in region.times or _middle(region.span)]
    rest = [time for time, _ in track]
    free = max(0, MAX_MOMENTS - len(moments))
    return [*moments[:MAX_MOMENTS], *(rest[i] for i in evenly(len(rest), free))]


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of `count` positions, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    if most < 2:
        return [count // 2] * most
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _middle(span: tuple[float, float] | None) -> list[float]:
    return [(span[0] + span[1]) / 2] if span else []


def _about(medium: Media) -> dict[str, Any]:
    return {
        "kind": medium.kind,
        "seen": medium.frame.seen,
        "original": medium.frame.original,
        "offset": medium.frame.offset,
        "scale": medium.frame.scale,
        "times": [round(float(time), 3) for time in medium.times],
        "span": _covered(medium),
        "source": _source(medium.source),
        "parent": medium.parent,
        "label": medium.label,
    }


def _covered(medium: Media) -> tuple[float, float] | None:
    """The part of the file that the medium covers, seconds; None for a picture."""
    if medium.span is not None or medium.kind == "image":
        return medium.span
    if medium.kind == "audio":
        return (0.0, len(medium.data) / SAMPLE_RATE)
    return (medium.times[0], medium.times[-1]) if medium.times else None


def _source(ref: MediaRef | None) -> str | None:
    """A word that is the same for media of the same file."""
    if ref is None:
        return None
    if ref.path is not None:
        return ref.path
    return hashlib.sha256(ref.data or repr(ref.pictures).encode()).hexdigest()


def _save(folder: Path, medium: Media, moments: Sequence[float]) -> dict[str, Any]:
    if medium.kind == "video":
        return {"frames": [_save_frame(folder, medium, index) for index in _chosen(medium.times, moments)]}
    if medium.kind == "audio":
        return {"file": _save_sound(folder, medium), "envelope": envelope(medium.data)}
    _save_picture(folder / f"{medium.key}.png", medium.data, MAX_SIDE)
    return {"file": f"media/{medium.key}.png"}


def _chosen(times: Sequence[float], moments: Sequence[float]) -> list[int]:
    """Frames that are stored, in order."""
    times_T = np.asarray(times, dtype=float)
    nearest = {int(np.abs(times_T - moment).argmin()) for moment in moments} if times else set()
    return sorted({*evenly(len(times), MAX_FRAMES), *nearest})


def _save_frame(folder: Path, medium: Media, index: int) -> dict[str, Any]:
    """One frame, named by its pixels: looks of rising density share it."""
    pixels = np.ascontiguousarray(medium.data[index])
    name = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    _save_picture(folder / f"{name}.jpg", pixels, FRAME_SIDE)
    return {"file": f"media/{name}.jpg", "time": round(float(medium.times[index]), 3)}


def _save_picture(path: Path, pixels: np.ndarray, side: int) -> None:
    if path.exists():
        return
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    encoded = io.BytesIO()
    # A run waits for this: the fastest level writes files a fifth larger in a third of the time.
    options: dict[str, Any] = (
        {"format": "PNG", "compress_level": 1} if path.suffix == ".png" else {"format": "JPEG", "quality": 85}
    )
    image.save(encoded, **options)
    _write(path, encoded.getvalue())


def envelope(samples: np.ndarray) -> list[float]:
    """The loudest magnitude in each of at most MAX_BINS equal stretches."""
    if not len(samples):
        return []
    starts = np.linspace(0, len(samples), min(MAX_BINS, len(samples)), endpoint=False).astype(int)
    return [round(float(peak), 3) for peak in np.maximum.reduceat(np.nan_to_num(np.abs(samples)), starts)]


def _save_sound(folder: Path, medium: Media) -> str | None:
    """A FLAC file; None where it would be over MAX_SOUND_BYTES."""
    path = folder / f"{medium.key}.flac"
    if path.exists():
        return f"media/{path.name}"
    # Two bytes a sample, of which lossless compression leaves half at best: more need not be tried.
    if not 0 < len(medium.data) <= MAX_SOUND_BYTES:
        return None
    encoded = io.BytesIO()
    soundfile.write(encoded, np.clip(medium.data, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    if len(encoded.getvalue()) > MAX_SOUND_BYTES:
        return None
    _write(path, encoded.getvalue())
    return f"media/{path.name}"


def _write(path: Path, data: bytes) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)
