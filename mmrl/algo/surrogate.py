"""Policy surrogates in weight form.

Each returns (loss_N, weight_N): the loss of every target, and its derivative by the target's new log-prob. The
derivative is written out, so that one forward serves any loss and nothing but log-probs needs a graph.

Shapes: N targets. `logratio_N` = new - old log-prob; `advantages_N` is constant over a trajectory.
"""

from __future__ import annotations

import torch

MAX_LOGRATIO = 20.0
"""Ratios are clamped to exp(+-20): beyond it they are noise that overflows."""

Pair = tuple[torch.Tensor, torch.Tensor]


def clip_surrogate(
    logratio_N: torch.Tensor,
    advantages_N: torch.Tensor,
    *,
    low: float,
    high: float,
    dual: float | None = None,
) -> Pair:
    """-min(r A, clip(r, 1 - low, 1 + high) A), PPO (arXiv 1707.06347, eq. 7); high > low is DAPO's clip-higher.

    Args:
        dual: for A < 0 the loss is at most -dual * A (dual clip, arXiv 1912.09729, eq. 5).
    """
    ratio_N = logratio_N.clamp(-MAX_LOGRATIO, MAX_LOGRATIO).exp()
    plain_N = -ratio_N * advantages_N
    clipped_N = -ratio_N.clamp(1 - low, 1 + high) * advantages_N
    loss_N, active_N = torch.maximum(plain_N, clipped_N), plain_N >= clipped_N
    if dual is not None:
        bound_N = -dual * advantages_N
        capped_N = (advantages_N < 0) & (loss_N > bound_N)
        loss_N, active_N = torch.where(capped_N, bound_N, loss_N), active_N & ~capped_N
    active_N = active_N & (logratio_N.abs() <= MAX_LOGRATIO)
    return loss_N, torch.where(active_N, plain_N, 0.0)


def sequence_logratio(logratio_N: torch.Tensor, trajectory_N: torch.Tensor) -> torch.Tensor:
    """(N,) each trajectory's mean log-ratio, on all of its targets (GSPO, arXiv 2507.18071, eq. 7).

    The derivative of a trajectory's seq_mean loss by each of its log-probs is then the clip weight over its length.
    """
    _, index_N = trajectory_N.unique(return_inverse=True)
    count = int(index_N.max()) + 1 if len(index_N) else 0
    sums = torch.zeros(count, dtype=logratio_N.dtype).index_add_(0, index_N, logratio_N)
    return (sums / index_N.bincount(minlength=count))[index_N]
