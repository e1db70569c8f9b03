"""Sound as audio towers of the Whisper kind take it: log-mel frames of 10 ms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mmrl.types import SAMPLE_RATE, Media

HOP, WINDOW = 160, 400
"""Samples: from one mel frame to the next, under one frame's window."""


def mel_length(medium: Media) -> int:
    """Mel frames of an audio."""
    return -(-len(medium.data) // HOP)


def num_tokens(mel_frames: int) -> int:
    """Features that the towers make of so many mel frames: a stride-2 convolution, then pooling by 2."""
    return ((mel_frames - 1) // 2 + 1 - 2) // 2 + 1


def log_mel(extractor: Any, medium: Media) -> torch.Tensor:
    """(mel bins, frames) float32.

    Args:
        extractor: the checkpoint's WhisperFeatureExtractor. It is given silence after the end, as where it pads to its
            full length: without it the last window would mirror the sound.
    """
    padded = np.pad(medium.data, (0, WINDOW + HOP))
    features = extractor(padded, sampling_rate=SAMPLE_RATE, padding=False, truncation=False, return_tensors="pt")
    return features.input_features[0, :, : mel_length(medium)].float()
