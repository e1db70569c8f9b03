"""Estimators of KL(policy || reference) from sampled tokens, in weight form (http://joschu.net/blog/kl-approx.html).

Each returns (value_N, weight_N): the estimate at every target, and its derivative by the new log-prob.
"""

from __future__ import annotations

from typing import Literal

import torch

KL = Literal["k2", "k3"]


def kl_penalty(kind: KL, logprobs_N: torch.Tensor, ref_logprobs_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """k2: (l - l_ref)^2 / 2. k3: exp(l_ref - l) - (l_ref - l) - 1.

    k1 is refused: the expected gradient of l - l_ref under the policy is zero, so as a loss it only adds noise.
    """
    difference_N = ref_logprobs_N - logprobs_N
    if kind == "k2":
        return difference_N.square() / 2, -difference_N
    if kind == "k3":
        ratio_N = difference_N.clamp(max=20.0).exp()
        return ratio_N - difference_N - 1, 1 - ratio_N
    raise ValueError(f"kl {kind!r}: as a loss use k2 or k3 (the expected gradient of k1 is zero)")
