"""Three ways to decode frames of a video, each checked against the probe's time stamps.

A backend is given indices into the probe's frames and yields (seconds from the start of the file, H x W x 3 uint8,
upright).
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from importlib.metadata import version
from typing import Any, BinaryIO, TypeVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from mmrl.processors.probe import Limits, Probe, UnusableError, open_container, probe, reason, video_stream

Item = TypeVar("Item")
Frames = Iterator[tuple[float, np.ndarray]]
Backend = Callable[[BinaryIO, Probe, Sequence[int], Limits], Frames]


def read_frames(name: str, file: BinaryIO, found: Probe, indices: Sequence[int], limits: Limits) -> Frames:
    """The frames at `indices`, which do not fall; UnusableError rather than a frame that is not the wanted one."""
    wanted = sorted(set(indices))
    times = found.times()
    if name != "pyav":  # the others paint over damage and say nothing
        strict = _strict(file, found, wanted, limits)
        for index in wanted:
            _next(strict, times[index])
    frames = BACKENDS[name](file, found, wanted, limits)
    repeats = {index: list(indices).count(index) for index in wanted} if len(wanted) < len(indices) else {}
    for index in wanted:
        time, frame = _next(frames, times[index])
        # 32-bit time stamps (decord) are exact to 2e-7 of their value.
        if abs(time - times[index]) > 1e-3 + 2e-7 * (found.start + times[index]):
            raise UnusableError(
                f"the frame at {times[index]:.3f} s cannot be decoded ({name} gives that at {time:.3f} s)"
            )
        if frame.shape[:2] != (found.size[1], found.size[0]):
            raise UnusableError(f"changes its size at {times[index]:.3f} s; convert the file to one size")
        for _ in range(repeats.get(index, 1)):
            yield times[index], frame


def _next(frames: Iterator[Item], moment: float) -> Item:
    try:
        return next(frames)
    except StopIteration:
        raise UnusableError(f"ends before the frame at {moment:.3f} s; the file is damaged") from None
    except UnusableError:
        raise
    except Exception as error:  # decoders raise anything on broken bytes
        raise UnusableError(f"is damaged at or before {moment:.3f} s ({reason(error).splitlines()[0][:200]})") from None


class _MissedError(Exception):
    """A seek landed behind the frame it was for."""


def _pyav(file: BinaryIO, found: Probe, indices: Sequence[int], limits: Limits) -> Frames:
    reformatter = VideoReformatter()  # one for all frames: to set one up takes longer than to use it
    for frame in _strict(file, found, indices, limits):
        pixels = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        yield found.seconds(frame.pts), np.rot90(pixels, found.rotation)


def _strict(file: BinaryIO, found: Probe, indices: Sequence[int], limits: Limits) -> Iterator[Any]:
    """FFmpeg's frames, from the nearest key frame; where that goes wrong, once more from the start of the file.

    Any damage between a key frame and a wanted frame is an error.
    """
    done = 0
    try:
        for frame in _decode(file, found, indices, limits, seek=True):
            yield frame
            done += 1
    except (av.FFmpegError, _MissedError):
        yield from _decode(file, found, indices[done:], limits, seek=False)


def _decode(file: BinaryIO, found: Probe, indices: Sequence[int], limits: Limits, *, seek: bool) -> Iterator[Any]:
    with open_container(file) as container:
        stream = video_stream(container, limits)
        position, frames = found.pts[0], container.decode(stream)
        for index in indices:
            wanted = found.pts[index]
            if seek and (key := found.key_before(wanted)) > position:
                container.seek(key, stream=stream)
                frames = container.decode(stream)
            frame = _until(frames, wanted)
            position = frame.pts
            yield frame


def _until(frames: Iterator[Any], wanted: int) -> Any:
    for frame in frames:
        if frame.pts is not None and frame.pts >= wanted:
            if frame.pts > wanted:
                raise _MissedError(f"no frame with time stamp {wanted}")
            if frame.is_corrupt:
                raise _MissedError("the frame is corrupt")
            return frame
    raise _MissedError("the stream ends too early")


def _decord(file: BinaryIO, found: Probe, indices: Sequence[int], limits: Limits) -> Frames:
    """decord applies the rotation itself. Its time stamps come from packets: they prove nothing about a frame."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    file.seek(0)
    reader = decord.VideoReader(file, num_threads=1)
    stamps = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)[:, 0]
    if len(stamps) != len(found.pts):  # it then decodes other frames than it says, e.g. where an edit list hides some
        raise UnusableError(f"decord counts {len(stamps)} frames where the file shows {len(found.pts)}; use pyav")
    for index in indices:
        yield float(stamps[index]) - found.start, reader[index].asnumpy()


def _torchcodec(file: BinaryIO, found: Probe, indices: Sequence[int], limits: Limits) -> Frames:
    """torchcodec applies the rotation itself. Asked by time, it needs lengths of frames, which FFmpeg 5 lacks."""
    from torchcodec.decoders import VideoDecoder

    file.seek(0)
    decoder = VideoDecoder(file, dimension_order="NHWC", num_ffmpeg_threads=0)
    for index in indices:
        frame = decoder.get_frame_at(index)
        yield frame.pts_seconds - found.start, frame.data.numpy()


BACKENDS: dict[str, Backend] = {"pyav": _pyav, "torchcodec": _torchcodec, "decord": _decord}
"""In the order in which "auto" tries them. PyAV comes first: FFmpeg's strict mode, which stops at damage, is reached
through it alone, so that the others cost a second decoding; and its worker needs no torch."""
MODULES = {"pyav": "av", "torchcodec": "torchcodec.decoders", "decord": "decord"}


def self_test(name: str) -> str:
    """Name and version of a backend that reads a rotated clip rightly; any exception says why it does not."""
    importlib.import_module(MODULES[name])
    file = _clip()
    limits = Limits(max_pixels=64 * 64, max_seconds=1)
    found = probe(file, limits)
    numbers = [0, 3, 5]
    for number, (time, frame) in zip(numbers, read_frames(name, file, found, numbers, limits), strict=True):
        left, right = frame[:, :24].mean(), frame[:, 40:].mean()
        if abs(time - number / 10) > 1e-3 or abs(left - 40 * number) > 15 or right < 240:
            raise UnusableError(f"reads frame {number} of the self-test wrongly")
    return f"{name} {_version(name)}"


def _clip() -> BinaryIO:
    """Six frames; upright, frame n is 40 * n on its left half and white on its right half."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=10, options={"qscale": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.set_display_rotation(90)
        for number in range(6):
            upright = np.full((64, 64, 3), 255, dtype=np.uint8)
            upright[:, :32] = 40 * number
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(upright, -1)), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file


def _version(name: str) -> str:
    return version("av" if name == "pyav" else name)
