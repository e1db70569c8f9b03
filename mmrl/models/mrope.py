"""M-RoPE positions in the convention of the original Qwen2-VL and of vLLM.

Text advances all three rows (t, h, w) by one. A medium of a t x h x w grid starts at the next position p and
has the rows p + t * step, p + h, p + w; what follows starts at the medium's highest position + 1
(Qwen2-VL, arXiv 2409.12191, section 2.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmrl.types import MediaSpan


def mrope_positions(length: int, spans: Sequence[MediaSpan], steps: Sequence[float] | None = None) -> np.ndarray:
    """(3, length) int64 positions.

    Args:
        length: number of tokens.
        spans: media, in order; each covers `length` tokens from `start`.
        steps: positions per temporal grid step, for each span (1 for images).
    """
    positions = np.empty((3, length), dtype=np.int64)
    at, next_position = 0, 0
    for span, step in zip(spans, steps or [1.0] * len(spans), strict=True):
        text = span.start - at
        positions[:, at : span.start] = next_position + np.arange(text)
        grid = _grid(span.grid, step) + next_position + text
        at = span.start + span.length
        positions[:, span.start : at] = grid
        next_position = int(grid.max()) + 1
    positions[:, at:] = next_position + np.arange(length - at)
    return positions


def _grid(grid: tuple[int, int, int], step: float) -> np.ndarray:
    """(3, t * h * w) offsets of a medium's tokens, in row-major order."""
    t, h, w = grid
    times = (np.arange(t) * step).astype(np.int64)
    rows = np.meshgrid(times, np.arange(h), np.arange(w), indexing="ij")
    return np.stack([row.reshape(-1) for row in rows])
