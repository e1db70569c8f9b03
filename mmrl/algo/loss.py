"""The losses that a train engine is given: GRPO's and SFT's.

Built once per optimiser step from flat tensors over its N targets; called with any part of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from mmrl.algo.correction import Correction, correction_weights
from mmrl.algo.kl import KL, kl_penalty
from mmrl.algo.surrogate import clip_surrogate, sequence_logratio
from mmrl.protocols import LossInputs, LossTerms


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GrpoLoss:
    """sum(coef_N * (correction_N * surrogate_N + kl_beta * KL_N - entropy_coef * entropy_N))."""

    advantages_N: torch.Tensor
    coef_N: torch.Tensor
    trajectory_N: torch.Tensor
    old_logprobs_N: torch.Tensor | None = None
    """Of the policy that sampled; None: strictly on-policy, the ratio is 1."""
    ref_logprobs_N: torch.Tensor | None = None
    engine_logprobs_N: torch.Tensor | None = None
    """Of the engine that sampled; a correction needs them."""
    correction: Correction | None = None
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    ratio: Literal["token", "sequence"] = "token"
    """"sequence" needs whole trajectories in every forward."""
    kl_beta: float = 0.0
    kl: KL = "k3"
    entropy_coef: float = 0.0

    def __call__(self, inputs: LossInputs) -> LossTerms:
        index_N = inputs.index_N
        logprobs_N = inputs.logprobs_N.double().cpu()
        coef_N = self.coef_N[index_N]
        loss_N, weight_N = self._surrogate(logprobs_N, index_N)
        if self.correction is not None:
            factor_N = self._correction(self.correction, logprobs_N, index_N)
            loss_N, weight_N = loss_N * factor_N, weight_N * factor_N
        if self.kl_beta:
            assert self.ref_logprobs_N is not None, "a KL penalty needs reference log-probs"
            kl_N, kl_weight_N = kl_penalty(self.kl, logprobs_N, self.ref_logprobs_N[index_N])
            loss_N, weight_N = loss_N + self.kl_beta * kl_N, weight_N + self.kl_beta * kl_weight_N
        d_entropies_N = None
        if self.entropy_coef:
            loss_N = loss_N - self.entropy_coef * inputs.entropies_N.double().cpu()
            d_entropies_N = -self.entropy_coef * coef_N
        return LossTerms(
            value=float((coef_N * loss_N).sum()), d_logprobs_N=coef_N * weight_N, d_entropies_N=d_entropies_N
        )

    def clip_fraction(self, logprobs_N: torch.Tensor) -> float:
        """Share of targets whose gradient the clip removed."""
        _, weight_N = self._surrogate(logprobs_N.double(), torch.arange(len(logprobs_N)))
        moving_N = self.advantages_N != 0
        return float((weight_N[moving_N] == 0).double().mean()) if moving_N.any() else 0.0

    def _surrogate(self, logprobs_N: torch.Tensor, index_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logratio_N = torch.zeros_like(logprobs_N)
        if self.old_logprobs_N is not None:
            logratio_N = logprobs_N - self.old_logprobs_N[index_N]
        if self.ratio == "sequence":
            logratio_N = sequence_logratio(logratio_N, self.trajectory_N[index_N])
        return clip_surrogate(
            logratio_N,
            self.advantages_N[index_N],
            low=self.clip_low,
            high=self.clip_high,
            dual=self.dual_clip,
        )

    def _correction(self, correction: Correction, logprobs_N: torch.Tensor, index_N: torch.Tensor) -> torch.Tensor:
        assert self.engine_logprobs_N is not None, "a correction needs the engine's log-probs"
        # Strictly on-policy, the step starts from the policy of this forward.
        start_N = logprobs_N if self.old_logprobs_N is None else self.old_logprobs_N[index_N]
        logratio_N = start_N - self.engine_logprobs_N[index_N]
        return correction_weights(logratio_N, self.trajectory_N[index_N], correction)[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SftLoss:
    """Cross entropy: -sum(coef_N * logprob_N)."""

    coef_N: torch.Tensor

    def __call__(self, inputs: LossInputs) -> LossTerms:
        coef_N = self.coef_N[inputs.index_N]
        return LossTerms(value=float(-(coef_N * inputs.logprobs_N.double().cpu()).sum()), d_logprobs_N=-coef_N)
