"""M-RoPE positions in the convention of the original Qwen2-VL and of vLLM.

Text advances all three rows (t, h, w) by one. A medium of a t x h x w grid starts at the next position p and
has the rows p + t * step, p + h, p + w; what follows starts at the medium's highest position + 1
(Qwen2-VL, arXiv 2409.12191, section 2.1). Audio advances as text does. A video and its sound, cut into chunks that
take turns, count from one origin (Qwen2.5-Omni, arXiv 2503.20215, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmrl.types import MediaSpan


def mrope_positions(length: int, spans: Sequence[MediaSpan]) -> np.ndarray:
    """(3, length) int64 positions.

    Args:
        length: number of tokens.
        spans: media, in order; each covers `length` tokens from `start`.
    """
    positions = np.empty((3, length), dtype=np.int64)
    at, next_position, origin = 0, 0, 0
    for span in spans:
        text = span.start - at
        positions[:, at : span.start] = next_position + np.arange(text)
        if not span.joined:
            origin = next_position + text
        at = span.start + span.length
        positions[:, span.start : at] = origin + _offsets(span)
        next_position = int(positions[:, span.start : at].max()) + 1
    positions[:, at:] = next_position + np.arange(length - at)
    return positions


def _offsets(span: MediaSpan) -> np.ndarray:
    """(3, span.length) positions of a medium's tokens, in row-major order, from its origin."""
    first = span.offset if span.joined else 0
    if span.grid is None:
        return np.tile(first + np.arange(span.length), (3, 1))
    t, h, w = span.grid
    times = ((first // (h * w) + np.arange(t)) * span.step).astype(np.int64)
    rows = np.meshgrid(times, np.arange(h), np.arange(w), indexing="ij")
    return np.stack([row.reshape(-1) for row in rows])
