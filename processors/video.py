"""Videos: true presentation times, one rotation, and decoding in a process that may crash or hang."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import Image as Pillow

from mmrl.errors import ConfigError, MediaError
from mmrl.processors.files import name_of, open_file, read_file
from mmrl.processors.image import decode, fit_size, view
from mmrl.processors.pool import call
from mmrl.processors.sampling import Plan, Sampling, frame_at, plan_look
from mmrl.types import CoordinateFrame, Media, MediaRef, Size, TimeSpan

LOG = logging.getLogger("mmrl.video")
BACKENDS = ("pyav", "torchcodec", "decord")
"""In the order in which "auto" tries them (decoders.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a video file holds."""

    container: str
    codec: str
    size: Size
    """Of a frame, upright."""
    rotation: int
    """Quarter turns, counter-clockwise, that make a stored frame upright."""
    has_audio: bool
    duration: float
    """Seconds."""
    is_vfr: bool
    """Whether frames are shown for unequal times."""
    times: tuple[float, ...]
    """When each frame is shown, in seconds from the start of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Video(Sampling):
    """Loads videos, also those that are given as pictures.

    Example: Video(frames=8, densest=32).load(MediaRef(kind="video", path="clip.mp4", root="data", span=(10.0, 20.0)))
    """

    backend: Literal["auto", "pyav", "torchcodec", "decord"] = "auto"
    """What decodes; "auto" is the first that works here."""
    timeout_s: float = 60.0
    """Wall-clock limit of a call, after which its process is killed."""
    max_source_pixels: int = 4096 * 2304
    """A video of larger frames is refused from its header."""
    max_source_seconds: float = 4 * 3600.0
    """A longer video is refused before it is decoded."""
    max_source_bytes: int = 8_000_000_000
    """A larger file is not read."""

    def load(self, ref: MediaRef) -> Media:
        """The frames of a look at `ref`, or at its span. MediaError names the file and what is wrong with it."""
        if ref.frames is not None:
            # What tools are given as the source leaves the number to them.
            return self._with_frames(ref).load(replace(ref, frames=None))
        return self._load_pictures(ref) if ref.pictures else self._load_file(ref)

    def _with_frames(self, ref: MediaRef) -> Video:
        try:
            return replace(self, frames=ref.frames and min(ref.frames, self.max_frames))
        except ValueError as error:
            raise MediaError(f"video {name_of(ref)}: {error}") from None

    def _load_file(self, ref: MediaRef) -> Media:
        look = {field.name: getattr(self, field.name) for field in dataclasses.fields(Sampling)}
        replies = self._call(ref, {"job": "look", "look": look, "span": ref.span})
        plan, _ = next(replies)
        width, height = plan["seen"]
        data = np.empty((len(plan["times"]), height, width, 3), dtype=np.uint8)
        for number, (_, pixels) in enumerate(replies):
            data[number] = np.frombuffer(pixels, dtype=np.uint8).reshape(data.shape[1:])
        return _media(ref, data, tuple(plan["size"]), tuple(plan["times"]), tuple(plan["span"]))

    def stills(self, ref: MediaRef, times: Sequence[float]) -> tuple[Media, ...]:
        """The frames shown at these times as images in full resolution, in the order of `times`."""
        if ref.pictures:
            starts = _picture_times(ref)
            shown = [frame_at(starts, moment) for moment in _inside(ref, times)]
            return tuple(self._still(ref, self._picture(ref, n), starts[n]) for n in shown)
        replies = self._call(ref, {"job": "stills", "times": list(times)})
        plan, _ = next(replies)
        width, height = plan["size"]
        frames = {
            header["time"]: np.frombuffer(pixels, dtype=np.uint8).reshape(height, width, 3)
            for header, pixels in replies
        }
        made = {time: self._still(ref, frame, time) for time, frame in frames.items()}
        return tuple(made[time] for time in plan["times"])

    def facts(self, ref: MediaRef) -> Facts:
        """What a video file holds, by its packets and one frame."""
        ((found, _),) = self._call(ref, {"job": "facts"})
        del found["bytes"]
        lists: dict[str, Any] = {"size": tuple(found["size"]), "times": tuple(found["times"])}
        return Facts(**{**found, **lists})

    def provenance(self) -> dict[str, str]:
        """What the pixels depend on beside the files, for the run's manifest."""
        return {"video_backend": working_backend(self.backend)[1]}

    def _call(self, ref: MediaRef, request: dict[str, Any]) -> Any:
        request["backend"] = working_backend(self.backend)[0]
        request["limits"] = {"max_pixels": self.max_source_pixels, "max_seconds": self.max_source_seconds}
        with open_file(ref, self.max_source_bytes) as file:
            yield from call(request, file, timeout_s=self.timeout_s, what=f"video {name_of(ref)}")

    def _still(self, ref: MediaRef, frame: np.ndarray, time: float) -> Media:
        try:
            seen = fit_size((frame.shape[1], frame.shape[0]), self.factor, self.min_pixels, self.max_pixels)
        except ValueError as error:
            raise MediaError(f"video {name_of(ref)}: {error}") from None
        image = view(frame, None, seen, label=f"{name_of(ref)} at {time:.2f} s")
        # Two moments that look alike are two images: a medium is found by its key.
        key = hashlib.sha256(repr((image.key, time)).encode()).hexdigest()
        return replace(image, key=key, times=(time,), source=ref)

    def _load_pictures(self, ref: MediaRef) -> Media:
        times = _picture_times(ref)
        first = self._picture(ref, 0)
        size = (first.shape[1], first.shape[0])
        try:
            plan = plan_look(times, len(times) / ref.picture_fps, size, ref.span, self)
        except ValueError as error:
            raise MediaError(f"video {name_of(ref)}: {error}") from None
        data = np.stack([self._shown_picture(ref, index, size, plan) for index in plan.indices])
        return _media(ref, data, size, tuple(times[index] for index in plan.indices), plan.span)

    def _picture(self, ref: MediaRef, index: int) -> np.ndarray:
        name = ref.pictures[index]
        data = read_file(MediaRef(kind="image", path=name, root=ref.root), self.max_source_bytes)
        return decode(data, name, self.max_source_pixels)

    def _shown_picture(self, ref: MediaRef, index: int, size: Size, plan: Plan) -> np.ndarray:
        picture = self._picture(ref, index)
        if (picture.shape[1], picture.shape[0]) != size:
            raise MediaError(
                f"video {name_of(ref)}: {ref.pictures[index]} is {picture.shape[1]} x {picture.shape[0]}, "
                f"the first picture {size[0]} x {size[1]}; make them one size"
            )
        return np.asarray(Pillow.fromarray(picture).resize(plan.seen, Pillow.Resampling.BICUBIC))


def _picture_times(ref: MediaRef) -> list[float]:
    if not 0 < ref.picture_fps < math.inf:
        raise MediaError(f"video {name_of(ref)}: picture_fps is {ref.picture_fps}; it must be more than 0")
    return [number / ref.picture_fps for number in range(len(ref.pictures))]


def _inside(ref: MediaRef, times: Sequence[float]) -> Sequence[float]:
    duration = len(ref.pictures) / ref.picture_fps
    for moment in times:
        if not 0 <= moment <= duration:
            raise MediaError(f"video {name_of(ref)}: {moment:g} s is outside; it lasts {duration:g} s")
    return times


def _media(ref: MediaRef, data: np.ndarray, size: Size, times: tuple[float, ...], span: TimeSpan) -> Media:
    seen = (data.shape[2], data.shape[1])
    frame = CoordinateFrame(original=size, seen=seen, scale=(size[0] / seen[0], size[1] / seen[1]))
    digest = hashlib.sha256(repr(("video", data.shape, frame, times, span)).encode())
    digest.update(data.data)
    return Media(
        kind="video",
        key=digest.hexdigest(),
        data=data,
        frame=frame,
        times=times,
        span=span,
        source=ref,
        label=name_of(ref),
    )


_LOCK = threading.Lock()
_WORKING: dict[str, tuple[str, str]] = {}


def working_backend(wanted: str) -> tuple[str, str]:
    """(name, name and version) of the backend; found out once per process. ConfigError where it does not work."""
    with _LOCK:
        if wanted not in _WORKING:
            _WORKING[wanted] = _try(BACKENDS if wanted == "auto" else (wanted,))
            LOG.info("videos are decoded by %s", _WORKING[wanted][1])
        return _WORKING[wanted]


def _try(names: Sequence[str]) -> tuple[str, str]:
    reasons = []
    for name in names:
        try:
            return name, check_backend(name)
        except MediaError as error:
            reasons.append(str(error))
    raise ConfigError(f"{'; '.join(reasons)}; `mmrl doctor` shows what works and how to install the rest")


def check_backend(name: str) -> str:
    """Name and version of a backend that passes its self-test in a worker; MediaError says why it does not."""
    ((found, _),) = call({"job": "check", "backend": name}, None, timeout_s=60.0, what=f"video backend {name}")
    return str(found["version"])
