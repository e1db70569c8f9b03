"""The one definition of a log-prob, used by every engine and by the trainer.

log-softmax of logits / temperature, after the family's reserved ids are suppressed; in float32 also where the weights
are bfloat16 (in float64 where they are float64).
Shapes: N targets, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import linear

Tensor = torch.Tensor
CHUNK_LOGITS, MIN_ROWS = 1 << 22, 256
"""Logits that are held at once, and the fewest rows of them that are worth a product of their own."""


def head_logits(head: Any, hidden_ND: Tensor) -> Tensor:
    """(N, V) logits, added up in float32."""
    return _logits(head.weight, hidden_ND)


def _logits(weight: Tensor, hidden_ND: Tensor) -> Tensor:
    if weight.dtype in (torch.float32, torch.float64):
        return linear(hidden_ND, weight)
    if weight.is_cuda:
        return torch.mm(hidden_ND, weight.t(), out_dtype=torch.float32)
    return linear(hidden_ND.float(), weight.float())


def processed_logprobs(logits_NV: Tensor, temperature: float | Tensor, reserved_ids: Sequence[int]) -> Tensor:
    """(N, V) log-probs. `temperature` is one number, or (N, 1): one for each row."""
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    if reserved_ids:
        logits_NV = logits_NV.index_fill(1, _index(reserved_ids, logits_NV), float("-inf"))
    return torch.log_softmax(logits_NV / temperature, dim=-1)


def target_logprobs(
    head: Any, hidden_ND: Tensor, target_N: Tensor, temperature: float, reserved_ids: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """(log-prob, entropy) of each target, without ever holding an (N, V) matrix of a long batch, backward included."""
    logprobs, entropies = _TargetLogprobs.apply(hidden_ND, head.weight, target_N, temperature, tuple(reserved_ids))
    return logprobs, entropies


class _TargetLogprobs(torch.autograd.Function):
    """Logits are made chunk by chunk, and once more in the backward.

    With z the processed logits, p their softmax, t the target and H the entropy:
    d log p_t / d z_j = [j = t] - p_j, and d H / d z_j = -p_j * (log p_j + H).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, temperature: float, reserved: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        ctx.temperature, ctx.reserved = temperature, reserved
        parts = []
        for rows in _chunks(len(hidden), len(weight)):
            logprobs = processed_logprobs(_logits(weight, hidden[rows]), temperature, reserved)
            chosen = logprobs.gather(1, target[rows, None])[:, 0]
            probs = logprobs.exp()
            parts.append((chosen, -(probs * _finite(logprobs, reserved)).sum(1)))
        empty = hidden.new_empty(0, dtype=_wide_dtype(weight))
        chosen, entropies = (torch.cat(column) for column in zip((empty, empty), *parts, strict=True))
        ctx.save_for_backward(hidden, weight, target, entropies)
        return chosen, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, target, entropies = ctx.saved_tensors
        d_chosen, d_entropies = grads
        wide, trained = weight.to(_wide_dtype(weight)), ctx.needs_input_grad[1]
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(wide) if trained else None
        for rows in _chunks(len(hidden), len(weight)):
            logprobs = processed_logprobs(_logits(weight, hidden[rows]), ctx.temperature, ctx.reserved)
            probs, logprobs = logprobs.exp(), _finite(logprobs, ctx.reserved)
            pull = d_chosen[rows, None] + d_entropies[rows, None] * (logprobs + entropies[rows, None])
            d_logits = probs.mul_(pull).neg_()
            d_logits.scatter_add_(1, target[rows, None], d_chosen[rows, None])
            d_logits /= ctx.temperature
            d_hidden[rows] = (d_logits @ wide).to(hidden.dtype)
            if d_weight is not None:
                d_weight.addmm_(d_logits.t(), hidden[rows].to(wide.dtype))
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None, None


def _finite(logprobs: Tensor, reserved: tuple[int, ...]) -> Tensor:
    """For products with probabilities, in place: that of a suppressed id is 0, and 0 * -inf would be NaN."""
    return logprobs.index_fill_(1, _index(reserved, logprobs), 0.0) if reserved else logprobs


def _index(ids: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(ids, device=like.device)


def _wide_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    step = max(MIN_ROWS, CHUNK_LOGITS // vocabulary)
    return [slice(start, start + step) for start in range(0, rows, step)]
