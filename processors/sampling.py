"""Which frames of a video a model sees, and at what size: pure functions of times and sizes.

The frame at time t is the last one whose presentation time is at most t. No frame is shown twice, except that the last
one is repeated where the count is not a multiple of `temporal`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmrl.processors.image import fit_size
from mmrl.types import Size, TimeSpan

MAX_FRAMES = 10_000
"""No look asks for more."""
ROUNDING_S = 6e-4
"""Times that differ by less are equal: Matroska rounds time stamps to milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a video is looked at."""

    fps: float = 2.0
    """Frames that are shown of a second of the video."""
    frames: int | None = None
    """So many, evenly spread, whatever `fps` says."""
    densest: int | None = None
    """Frames of the densest look that is planned. A look of `frames` then takes steps of the densest one at even
    distances, so that the steps of a look are among those of a look of twice as many; it is a multiple of `frames`."""
    min_frames: int = 4
    """Of those that `fps` gives, at least; a video that has fewer shows all it has."""
    max_frames: int = 768
    """Of those that `fps` or a row gives, at most."""
    min_pixels: int = 128 * 28 * 28
    """Pixels of a frame as the model sees it, at least."""
    max_pixels: int = 768 * 28 * 28
    """Pixels of a frame as the model sees it, at most."""
    max_tokens: int | None = None
    """Vision tokens of the whole video, at most: frames are shrunk down to `min_pixels`, then there are fewer of them.
    With `densest`, those of the densest look."""
    factor: int = 28
    """Sides of a seen frame are multiples of it: the model's patch size times its merge size."""
    temporal: int = 2
    """Frames of one step in time: the model's temporal patch size."""

    def __post_init__(self) -> None:
        """ValueError for settings that no video could meet."""
        if not 0 < self.fps < math.inf:
            raise ValueError(f"fps is {self.fps}; it must be more than 0")
        for name in ("frames", "densest", "min_frames", "max_frames", "min_pixels", "max_tokens", "factor", "temporal"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
            if name.endswith(("frames", "densest")) and value is not None and value > MAX_FRAMES:
                raise ValueError(f"{name} is {value}; it must be at most {MAX_FRAMES}")
        if self.min_frames > self.max_frames or self.min_pixels > self.max_pixels:
            raise ValueError("min_frames and min_pixels may not be more than max_frames and max_pixels")
        if self.densest and (self.densest % self.num_frames or self.num_frames % self.temporal):
            raise ValueError(
                f"densest {self.densest} must be a multiple of frames {self.num_frames}, "
                f"and that of temporal {self.temporal}"
            )

    @property
    def num_frames(self) -> int:
        """Frames of this look where the number is fixed, else 0."""
        return self.frames or self.densest or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a look at a video shows."""

    indices: tuple[int, ...]
    """Of frames, in order of their times; their number is a multiple of `temporal`."""
    seen: Size
    span: TimeSpan


def plan_look(times: Sequence[float], duration: float, size: Size, span: TimeSpan | None, look: Sampling) -> Plan:
    """Plan a look at a video.

    Args:
        times: of its frames, increasing; the first one may come after the file's sound.
        duration: seconds, to the end of the last frame.
        size: of a frame, upright.

    Raises:
        ValueError: the span lies outside, or the budget does not hold one step.
    """
    covered = clip_span(span, duration, times[0])
    indices = distinct(times, moments(covered, look))
    seen, most = fit_budget(size, len(indices), look)
    if most < len(indices):
        indices = distinct(times, spread(covered, most))
    return Plan(indices=even_steps(indices, look), seen=seen, span=covered)


def clip_span(span: TimeSpan | None, duration: float, begin: float = 0.0) -> TimeSpan:
    """The part of `span` between `begin` and `duration` seconds; ValueError where there is none."""
    if span is None:
        return (begin, duration)
    start, end = max(begin, span[0]), min(span[1], duration)
    if not (span[0] < span[1] and start < end):  # nor is NaN less than anything
        lasts = f"lasts from {begin:g} s to {duration:g} s" if begin else f"lasts {duration:g} s"
        raise ValueError(f"the span {span[0]:g}-{span[1]:g} s is empty or outside; it {lasts}")
    return (start, end)


def moments(span: TimeSpan, look: Sampling) -> list[float]:
    """Times at which the densest look asks for a frame."""
    if fixed := look.densest or look.frames:
        return spread(span, fixed)
    length = span[1] - span[0]
    count = max(1, math.ceil(min((length - ROUNDING_S) * look.fps, look.max_frames + 1)))
    if count > look.max_frames or count < look.min_frames:
        return spread(span, min(max(count, look.min_frames), look.max_frames))
    return [span[0] + n / look.fps for n in range(count)]


def spread(span: TimeSpan, count: int) -> list[float]:
    """`count` times, each at the start of its equal share of the span."""
    step = (span[1] - span[0]) / count
    return [span[0] + n * step for n in range(count)]


def frame_at(times: Sequence[float], moment: float) -> int:
    """Index of the frame that is shown at a moment."""
    return max(0, bisect.bisect_right(times, moment + ROUNDING_S) - 1)


def distinct(times: Sequence[float], wanted: Sequence[float]) -> list[int]:
    """Indices of the frames shown at these times, in order, each once."""
    return sorted({frame_at(times, moment) for moment in wanted})


def even_steps(indices: Sequence[int], look: Sampling) -> tuple[int, ...]:
    """The last index repeated until the steps are full; then the steps of this look among those of the densest.

    Of S steps, a look of W takes the steps n * S // W. Those of W are among those of 2 W, whatever S is.
    """
    full = [*indices, *[indices[-1]] * (-len(indices) % look.temporal)]
    steps = len(full) // look.temporal
    wanted = min(steps, look.num_frames // look.temporal) if look.densest else steps
    starts = (number * steps // wanted * look.temporal for number in range(wanted))
    return tuple(index for start in starts for index in full[start : start + look.temporal])


def fit_budget(size: Size, num_frames: int, look: Sampling) -> tuple[Size, int]:
    """(size of a seen frame, number of frames) within the budgets for pixels and tokens."""
    if look.max_tokens is None:
        return fit_size(size, look.factor, look.min_pixels, look.max_pixels), num_frames
    steps = -(-num_frames // look.temporal)
    room = look.max_tokens // steps * look.factor**2
    most = max(look.min_pixels, min(look.max_pixels, room))
    seen = fit_size(size, look.factor, look.min_pixels, most)
    tokens = seen[0] * seen[1] // look.factor**2
    if tokens > look.max_tokens:
        raise ValueError(f"one step takes {tokens} tokens, more than max_tokens = {look.max_tokens}; lower min_pixels")
    return seen, min(num_frames, look.max_tokens // tokens * look.temporal)
