"""Pictures as vision towers of the Qwen kind take them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from mmrl.types import Media

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patching:
    """How a tower cuts pictures: `patch` pixels a side, `merge` x `merge` patches a token, `temporal` frames a step."""

    patch: int
    merge: int
    temporal: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def grid(self, medium: Media) -> tuple[int, int, int]:
        """(t, h, w) of an image or a video in merged vision tokens."""
        width, height = medium.frame.seen
        side = self.patch * self.merge
        if width % side or height % side:
            raise ValueError(f"{medium.label}: seen size {width} x {height} is not a multiple of {side}")
        frames = len(medium.data) if medium.kind == "video" else self.temporal
        if frames % self.temporal:
            raise ValueError(f"{medium.label}: {frames} frames are not a multiple of {self.temporal}")
        return (frames // self.temporal, height // side, width // side)

    def rows(self, medium: Media) -> torch.Tensor:
        """(t * H/p * W/p, C * temporal * p * p) normalised patches.

        Patches of one merged token are neighbours, as the tower's merger expects. An image is a still video.
        """
        still = medium.kind == "image"
        frames = torch.tensor(medium.data[None] if still else medium.data, dtype=torch.float32).div_(255)
        frames = frames.sub_(torch.tensor(self.mean)).div_(torch.tensor(self.std)).permute(0, 3, 1, 2)
        if still:
            frames = frames.expand(self.temporal, -1, -1, -1)
        t, h, w = self.grid(medium)
        p, m = self.patch, self.merge
        cut = frames.unflatten(3, (w, m, p)).unflatten(2, (h, m, p)).unflatten(0, (t, self.temporal))
        # to (t, h, w, m, m, C, temporal, p, p)
        return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * self.temporal * p * p)

    def steps(self, medium: Media) -> tuple[Media, ...]:
        """A video as its steps in time, which a tower encodes apart from one another; an image is one step.

        Steps of equal pixels have equal keys, whatever video they came from.
        """
        if medium.kind != "video":
            return (medium,)
        starts = range(0, len(medium.data), self.temporal)
        return tuple(_step(medium, medium.data[start : start + self.temporal]) for start in starts)

    def step_times(self, medium: Media) -> list[float]:
        """When each step of a video is shown: the mean of its frames' times."""
        times = np.array(medium.times).reshape(-1, self.temporal)
        return [float(value) for value in times.mean(1)]

    def seconds_per_step(self, medium: Media) -> float:
        """Mean seconds from one step to the next (Qwen's second_per_grid_ts); 1 where there is only one.

        Steps are counted from their first frames: the last one may hold a frame twice, which is no later moment.
        Rounded to a tenth of a millisecond: rounding errors of time stamps would make positions that are floors of
        products one too low.
        """
        times = medium.times[:: self.temporal]
        if len(times) < 2:
            return 1.0
        return round((times[-1] - times[0]) / (len(times) - 1), 4)


def _step(medium: Media, frames: np.ndarray) -> Media:
    digest = hashlib.sha256(repr(frames.shape).encode())
    digest.update(frames.tobytes())
    return replace(medium, key=digest.hexdigest(), data=frames)
