"""Sound: 16 kHz mono, from audio files and from the sound tracks of videos, decoded in a process that may crash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from mmrl.processors.files import name_of, open_file
from mmrl.processors.pool import call
from mmrl.types import SAMPLE_RATE, Media, MediaRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Audio:
    """Loads sound.

    Example: Audio(max_seconds=30).load(MediaRef(kind="audio", path="talk.mp4", root="data", span=(5.0, 20.0)))
    """

    min_seconds: float = 0.1
    """A shorter part is refused."""
    max_seconds: float = 600.0
    """A longer part is refused, and never more than this is decoded."""
    timeout_s: float = 60.0
    """Wall-clock limit of a call, after which its process is killed."""
    max_source_bytes: int = 8_000_000_000
    """A larger file is not read."""

    def load(self, ref: MediaRef) -> Media:
        """The sound of `ref`, or of its span. MediaError names the file and what is wrong with it."""
        limits = {"min_seconds": self.min_seconds, "max_seconds": self.max_seconds}
        request = {"job": "sound", "span": ref.span, **limits}
        with open_file(ref, self.max_source_bytes) as file:
            ((found, raw),) = call(request, file, timeout_s=self.timeout_s, what=f"audio {name_of(ref)}")
        samples = resample(np.frombuffer(raw, dtype=np.float32), found["rate"])
        span = (found["span"][0], found["span"][1])
        digest = hashlib.sha256(repr(("audio", samples.shape, span)).encode())
        digest.update(samples.data)
        return Media(kind="audio", key=digest.hexdigest(), data=samples, span=span, source=ref, label=name_of(ref))


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Mono samples at `rate` to 16 kHz."""
    if rate == SAMPLE_RATE:
        return samples
    import torch
    from torchaudio.functional import resample as torch_resample

    return torch_resample(torch.tensor(samples), rate, SAMPLE_RATE).numpy()
