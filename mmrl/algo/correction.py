"""Weights against the mismatch between the engine that samples and the trainer.

The engine computes with other kernels, or with older weights: it samples from a policy mu, while the trainer starts its
step from a policy pi. The weight pi / mu, kept within bounds, makes a target's surrogate that of samples from pi.
Truncated: Ionides, Truncated Importance Sampling, 2008; for this mismatch https://fengyao.notion.site/off-policy-rl.
Masked: IcePop, https://ringtech.notion.site/icepop.

Weights are constants: no gradient passes through them. A target whose weight is 0 still counts in the means of a loss.

Shapes: N targets. `logratio_N` = the trainer's log-prob at the start of the step - the engine's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from mmrl.algo.surrogate import MAX_LOGRATIO


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    kind: Literal["truncate", "mask"] = "truncate"
    """What happens to a ratio out of bounds: it becomes `high`, or 0."""
    level: Literal["token", "sequence"] = "token"
    """A target's ratio is its own, or the product over all targets of its trajectory, turn after turn."""
    low: float = 0.0
    """Lower bound of a mask."""
    high: float = 2.0


def correction_weights(
    logratio_N: torch.Tensor, trajectory_N: torch.Tensor, correction: Correction
) -> tuple[torch.Tensor, torch.Tensor]:
    """((N,) weights, (N,) whether a bound changed them). "sequence" needs whole trajectories."""
    if correction.level == "sequence":
        logratio_N = sequence_sum(logratio_N, trajectory_N)
    ratio_N = logratio_N.clamp(-MAX_LOGRATIO, MAX_LOGRATIO).exp()
    if correction.kind == "truncate":
        return ratio_N.clamp(max=correction.high), ratio_N > correction.high
    kept_N = (ratio_N >= correction.low) & (ratio_N <= correction.high)
    return torch.where(kept_N, ratio_N, 0.0), ~kept_N


def sequence_sum(logratio_N: torch.Tensor, trajectory_N: torch.Tensor) -> torch.Tensor:
    """(N,) each trajectory's sum, on all of its targets."""
    trajectories, index_N = trajectory_N.unique(return_inverse=True)
    sums = torch.zeros(len(trajectories), dtype=logratio_N.dtype).index_add_(0, index_N, logratio_N)
    return sums[index_N]
