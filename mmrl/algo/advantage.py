"""Advantages from the rewards of groups.

Shapes: B trajectories of one optimiser step; `group_B` numbers each one's group. NaN rewards mark trajectories that
could not be scored: they are left out of every statistic and get advantage 0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Centre = Literal["mean", "loo", "none"]
Scale = Literal["none", "std_group", "std_batch", "mean_group"]


def group_advantages(
    rewards_B: np.ndarray,
    group_B: np.ndarray,
    *,
    centre: Centre = "mean",
    scale: Scale = "std_group",
    eps: float = 1e-4,
) -> np.ndarray:
    """(B,) float64 advantages.

    Args:
        centre: "mean" subtracts the group's mean (GRPO, arXiv 2402.03300); "loo" the mean of the other members
            (RLOO, arXiv 2402.14740); "none" nothing.
        scale: "std_group" divides by the group's standard deviation (ddof 1, GRPO); "std_batch" by the batch's
            (Lite-PPO, arXiv 2508.08221); "mean_group" by the group's mean (MaxRL); "none" by 1 (Dr. GRPO,
            arXiv 2503.20783).
        eps: added to the divisor.

    A group with fewer than two scored members says nothing about its members: they get 0.
    """
    rewards_B = np.asarray(rewards_B, dtype=np.float64)
    advantages_B = np.zeros_like(rewards_B)
    scored_B = np.isfinite(rewards_B)
    batch_std = rewards_B[scored_B].std(ddof=1) if scored_B.sum() > 1 else 0.0
    for group in np.unique(group_B):
        member_B = (group_B == group) & scored_B
        rewards = rewards_B[member_B]
        if len(rewards) >= 2:
            advantages_B[member_B] = _centred(rewards, centre) / _divisor(rewards, scale, batch_std, eps)
    return advantages_B


def shuffled(advantages_B: np.ndarray, rewards_B: np.ndarray, seed: int) -> np.ndarray:
    """Control: the same advantages, dealt to the scored trajectories of the batch at random."""
    scored = np.flatnonzero(np.isfinite(rewards_B))
    result = advantages_B.copy()
    result[scored] = advantages_B[np.random.default_rng(seed).permutation(scored)]
    return result


def _centred(rewards: np.ndarray, centre: Centre) -> np.ndarray:
    if centre == "none":
        return rewards
    # The mean of equal numbers may differ from them by rounding, which a small divisor would enlarge.
    difference = rewards - rewards.mean() if np.ptp(rewards) else np.zeros_like(rewards)
    return difference * len(rewards) / (len(rewards) - 1) if centre == "loo" else difference


def _divisor(rewards: np.ndarray, scale: Scale, batch_std: float, eps: float) -> float:
    if scale == "none":
        return 1.0
    return float({"std_group": rewards.std(ddof=1), "std_batch": batch_std, "mean_group": rewards.mean()}[scale] + eps)
