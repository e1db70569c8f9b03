"""How the losses of single tokens add up to the loss of an optimiser step.

Every mode is one coefficient per target, computed over the whole step: loss = sum(coef_N * loss_N). Loss and gradient
therefore do not depend on how the step is cut into micro-batches.

Shapes: N targets of the step, B trajectories; `trajectory_N` and `group_B` number each one's trajectory and group.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Aggregate = Literal["token_mean", "seq_mean", "const", "seq_sum", "token_sum", "question_mean"]


def coefficients(
    mode: Aggregate, trajectory_N: np.ndarray, group_B: np.ndarray, length: int | None = None
) -> np.ndarray:
    """(N,) float64 coefficients.

    Modes:
        token_mean: mean over all targets of the step (DAPO, arXiv 2503.14476).
        seq_mean: mean over trajectories of each one's token mean (GRPO, arXiv 2402.03300).
        const: sum over targets, divided by B * length (Dr. GRPO, arXiv 2503.20783).
        seq_sum: mean over trajectories of each one's token sum.
        token_sum: plain sum.
        question_mean: mean over groups of the token mean within each.
    """
    num_trajectories = len(group_B)
    ones_N = np.ones(len(trajectory_N))
    if mode == "token_mean":
        return ones_N / max(1, len(trajectory_N))
    if mode == "token_sum":
        return ones_N
    if mode == "seq_sum":
        return ones_N / num_trajectories
    if mode == "const":
        if length is None:
            raise ValueError("aggregate 'const' needs a length")
        return ones_N / (num_trajectories * length)
    if mode == "seq_mean":
        tokens_B = np.bincount(trajectory_N, minlength=num_trajectories)
        return 1.0 / (tokens_B[trajectory_N] * num_trajectories)
    _, group_B = np.unique(group_B, return_inverse=True)
    group_N = group_B[trajectory_N]
    tokens_G = np.bincount(group_N)
    return 1.0 / (tokens_G[group_N] * (group_B.max() + 1))
