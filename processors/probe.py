"""What a video file holds, by its packets: headers may lie, be absent, or speak of an average."""

from __future__ import annotations

import bisect
import contextlib
import os
from collections import OrderedDict
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.stream import Disposition

from mmrl.types import Size

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf"
"""Formats that FFmpeg may open: none that names other files (playlists, lists of parts)."""
VIDEO_CODECS = (
    *("h264", "hevc", "av1", "libdav1d", "libaom-av1", "vp8", "vp9", "libvpx", "libvpx-vp9"),
    *("mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "h263", "flv", "theora", "prores"),
    *("msmpeg4", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2"),
)


SMALL_PIXELS = 320 * 240
"""Frames of no more are decoded by one thread: several take longer to start than they save."""


class UnusableError(Exception):
    """Why a file cannot be shown; the parent adds its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Caps on a source; what is larger is refused before it is decoded."""

    max_pixels: int
    """Of a frame."""
    max_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A video stream. Times are in seconds from the start of the file, as those of its sound."""

    container: str
    codec: str
    size: Size
    """Of a frame, upright."""
    rotation: int
    """Quarter turns, counter-clockwise, that make a stored frame upright."""
    has_audio: bool
    start: float
    """Second 0 in the file's own clock, at or before the first frame."""
    time_base: Fraction
    pts: tuple[int, ...]
    """Of every frame that is shown, increasing."""
    keys: tuple[int, ...]
    """The pts from which decoding can start, increasing."""
    last: int
    """How long the last frame is shown, in units of the time base."""

    @property
    def duration(self) -> float:
        return self.seconds(self.pts[-1] + self.last)

    def seconds(self, pts: int) -> float:
        """From the start of the file."""
        return pts * self.time_base.numerator / self.time_base.denominator - self.start

    def times(self) -> list[float]:
        """Of every frame."""
        return [self.seconds(pts) for pts in self.pts]

    @property
    def is_vfr(self) -> bool:
        """Whether gaps between frames differ by more than the rounding of time stamps to milliseconds."""
        gaps = np.diff(np.array(self.pts, dtype=np.float64))
        return len(gaps) > 1 and float(gaps.max() - gaps.min()) > max(2.0, 0.0025 / float(self.time_base))

    def key_before(self, pts: int) -> int:
        """The last pts, at or before this one, from which decoding can start."""
        return self.keys[max(0, bisect.bisect_right(self.keys, pts) - 1)]


def open_container(file: BinaryIO) -> Any:
    """FFmpeg's view of a file object. It is given no name, so there is nothing it could open besides."""
    file.seek(0)
    try:
        return av.open(file, options={"format_whitelist": CONTAINERS}, metadata_errors="replace")
    except av.FFmpegError as error:
        raise UnusableError(f"not a media file of a known format ({reason(error)})") from None


def reason(error: Exception) -> str:
    """An error of FFmpeg without the file's name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def video_stream(container: Any, limits: Limits) -> Any:
    """The stream that a player would show; refused where its header is over the caps."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        raise UnusableError("holds no video")
    codec = stream.codec_context
    if codec is None or codec.name not in VIDEO_CODECS:
        raise UnusableError(f"codec {codec.name if codec else 'unknown'} is not supported; convert the file to H.264")
    check_size((codec.width, codec.height), limits)
    # The decoder counts padding too; its own cap is there for frames that grow in the middle of a stream.
    codec.options = {"max_pixels": str(2 * limits.max_pixels + 1_000_000), "err_detect": "explode"}
    if codec.width * codec.height > SMALL_PIXELS:
        codec.thread_type = "AUTO"
    return stream


def clock_start(container: Any) -> float:
    """Second 0 in the file's own clock: where the first of its video and its sound starts.

    What is before the clock's own 0 is the lead-in of an encoder, which is not shown.
    """
    best = [stream for kind in ("video", "audio") if (stream := container.streams.best(kind)) is not None]
    told = [stream for stream in best if stream.start_time is not None]
    shown = [stream for stream in told if not stream.disposition & Disposition.attached_pic]
    return max(0.0, min((float(stream.start_time * stream.time_base) for stream in shown), default=0.0))


def check_size(size: Size, limits: Limits) -> None:
    """UnusableError where a frame is over the cap."""
    if size[0] * size[1] > limits.max_pixels:
        raise UnusableError(
            f"{size[0]} x {size[1]} is over the cap of {limits.max_pixels} pixels; "
            "shrink the file or raise max_source_pixels"
        )


def probe(file: BinaryIO, limits: Limits) -> Probe:
    """Read all packets, decode one frame."""
    with open_container(file) as container:
        stream = video_stream(container, limits)
        codec, has_audio = stream.codec_context.name, bool(container.streams.audio)
        frame = first_frame(container, stream)
        size, turns = (frame.width, frame.height), round(frame.rotation / 90) % 4
    check_size(size, limits)
    with open_container(file) as container:
        stream = video_stream(container, limits)
        name, time_base, start = container.format.name, stream.time_base, clock_start(container)
        shown = _packets(container, stream)
    if shown is None:
        with open_container(file) as container:
            shown = _decoded(container, video_stream(container, limits))
    pts, keys, last = shown
    found = Probe(
        container=name,
        codec=codec,
        size=size if turns % 2 == 0 else (size[1], size[0]),
        rotation=turns,
        has_audio=has_audio,
        start=min(start, float(pts[0] * time_base)),
        time_base=time_base,
        pts=tuple(pts),
        keys=tuple(keys),
        last=last,
    )
    if found.duration > limits.max_seconds:
        raise UnusableError(
            f"{found.duration:.0f} s is over the cap of {limits.max_seconds:g} s; "
            "cut the file or raise max_source_seconds"
        )
    return found


def known_probe(file: BinaryIO, limits: Limits) -> Probe:
    """`probe`, once for each file: tools look at one again and again, and its packets may be hours long."""
    stat = os.fstat(file.fileno())
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, limits)
    if key not in _KNOWN:
        _KNOWN[key] = probe(file, limits)
        while len(_KNOWN) > 1 and sum(len(known.pts) for known in _KNOWN.values()) > MAX_KNOWN_FRAMES:
            _KNOWN.popitem(last=False)
    _KNOWN.move_to_end(key)
    return _KNOWN[key]


_KNOWN: OrderedDict[tuple[Any, ...], Probe] = OrderedDict()
MAX_KNOWN_FRAMES = 1_000_000
"""Frames of the probes that a process remembers."""


def first_frame(container: Any, stream: Any) -> Any:
    """The first frame that can be decoded; damage before it may lie outside of what is wanted."""
    for packet in container.demux(stream):
        with contextlib.suppress(av.FFmpegError):
            for frame in packet.decode():
                return frame
    raise UnusableError("holds no frame that can be decoded")


Shown = tuple[list[int], list[int], int]


def _packets(container: Any, stream: Any) -> Shown | None:
    """(pts of shown frames, pts of key frames, length of the last); None where packets lack time stamps."""
    lengths: dict[int, int] = {}
    keys: list[int] = []
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_corrupt or not (keys or packet.is_keyframe):
                continue
            if packet.pts is None:
                return None
            if packet.is_keyframe:
                keys.append(packet.pts)
            if not packet.is_discard and not _hidden(stream, packet) and packet.pts >= keys[0]:
                lengths[packet.pts] = packet.duration or 0
    except av.FFmpegError:  # the end of a broken file; what stands before it is good
        pass
    return _shown(lengths, keys)


def _hidden(stream: Any, packet: Any) -> bool:
    """Whether a VP8 packet holds a frame that is only referred to (RFC 6386, 9.1: show_frame)."""
    return stream.codec_context.name in ("vp8", "libvpx") and not bytes(packet)[0] & 0x10


def _decoded(container: Any, stream: Any) -> Shown:
    """As `_packets`, by decoding every frame."""
    lengths: dict[int, int] = {}
    keys: list[int] = []
    try:
        for frame in container.decode(stream):
            if frame.pts is None:
                raise UnusableError("its frames have no time stamps; convert the file to mp4")
            lengths[frame.pts] = frame.duration or 0
            if frame.key_frame:
                keys.append(frame.pts)
    except av.FFmpegError:  # as in _packets
        pass
    return _shown(lengths, keys)


def _shown(lengths: dict[int, int], keys: list[int]) -> Shown:
    if not lengths:
        raise UnusableError("holds no frame that can be decoded")
    pts = sorted(lengths)
    gap = int(np.median(np.diff(pts))) if len(pts) > 1 else 1
    return pts, sorted(set(keys)), lengths[pts[-1]] or gap
