"""The one definition of a log-prob, used by every engine and by the trainer.

log-softmax of logits / temperature, after the family's reserved ids are suppressed.
Shapes: N targets, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 1 << 25
"""Logits that are held at once; beyond it the head runs in chunks that are recomputed in the backward."""


def processed_logprobs(
    logits_NV: torch.Tensor, temperature: float | torch.Tensor, reserved_ids: Sequence[int]
) -> torch.Tensor:
    """(N, V) float32 log-probs. `temperature` is one number, or (N, 1): one for each row."""
    logits_NV = logits_NV.float()
    if reserved_ids:
        logits_NV = logits_NV.index_fill(1, torch.tensor(reserved_ids, device=logits_NV.device), float("-inf"))
    return torch.log_softmax(logits_NV / temperature, dim=-1)


def target_logprobs(
    head: Any,
    hidden_ND: torch.Tensor,
    target_N: torch.Tensor,
    temperature: float,
    reserved_ids: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-prob, entropy) of each target, float32, without ever holding an (N, V) matrix of a long batch."""
    chunk = max(1, CHUNK_LOGITS // head.weight.shape[0])

    def block(hidden: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs = processed_logprobs(head(hidden), temperature, reserved_ids)
        chosen = logprobs.gather(1, target.unsqueeze(1)).squeeze(1)
        # exp(-inf) * -inf is NaN: a suppressed id adds nothing to the entropy.
        finite = logprobs.masked_fill(logprobs == float("-inf"), 0.0)
        return chosen, -(logprobs.exp() * finite).sum(1)

    if len(hidden_ND) <= chunk:
        return block(hidden_ND, target_N)
    parts = [
        checkpoint(block, hidden, target, use_reentrant=False)
        for hidden, target in zip(hidden_ND.split(chunk), target_N.split(chunk), strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
