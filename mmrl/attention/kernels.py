"""Attention kernels that also give the log-sum-exp of their scores, and take it back in the backward.

A softmax over a union of keys is the mix of the softmaxes over its parts, weighted by their log-sum-exps. A flash
backward recomputes the probabilities from scores and log-sum-exp: given those of the whole union, it returns the part's
exact share of the gradient (FlashAttention-2, arXiv 2307.08691, section 2.3).

Shapes: B sequences, H query heads, K key heads (H is a multiple of K), Q queries, S keys, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

aten = torch.ops.aten
Tensor = torch.Tensor
MAX_SCORES = 1 << 26
"""Scores under a bias that are held at once, where a device has no kernel for it."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """`causal`: query i sees keys 0 to i, for as many queries as keys; else every query sees every key."""

    name: str
    forward: Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
    """(q_BHQD, k_BKSD, v_BKSD, causal, scale) -> (out_BHQD, lse_BHQ)."""
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor, Tensor]]
    """(d_out_BHQD, q, k, v, out, lse, causal, scale) -> (d_q, d_k, d_v)."""


def kernel_for(query: Tensor) -> Kernel:
    """The fastest kernel for these queries' device, type and width."""
    if query.device.type == "cpu":
        return CPU
    if query.device.type == "cuda" and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256:
        return FLASH if query.dtype in (torch.float16, torch.bfloat16) else EFFICIENT
    return PLAIN


def masked_forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(out_BHQD, lse_BHQ) under a bias that is -inf where a query does not see a key; each must see one. No gradients.

    Args:
        bias: (B, 1, Q, S), of the queries' type.
    """
    if q.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias, scale=scale)
    return written_out(q, k, v, bias, scale)


def written_out(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The same without a kernel, row by row where the scores are many."""
    rows = max(1, MAX_SCORES // (q.shape[1] * q.shape[2] * k.shape[2]))
    parts = zip(q.split(rows), k.split(rows), v.split(rows), bias.split(rows), strict=True)
    found = [_biased(*part, scale) for part in parts]
    return torch.cat([out for out, _ in found]), torch.cat([lse for _, lse in found])


def _biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Heads that share keys are computed as more queries of one head: no key is copied."""
    groups, queries = k.shape[1], q.shape[2]
    folded = q.unflatten(1, (groups, -1)).flatten(2, 3)
    scores = (folded @ k.mT).to(lse_dtype(q)) * scale + bias.to(lse_dtype(q)).repeat(1, 1, q.shape[1] // groups, 1)
    lse = scores.logsumexp(-1)
    out = (scores - lse[..., None]).exp().to(v) @ v
    return out.unflatten(2, (-1, queries)).flatten(1, 2), lse.unflatten(2, (-1, queries)).flatten(1, 2)


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)


def _cpu_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(d_out, q, k, v, out, lse, 0.0, causal, scale=scale)


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    ends_q, ends_k = _ends(q), _ends(k)
    out, lse, *_ = aten._flash_attention_forward(
        _flat(q), _flat(k), _flat(v), ends_q, ends_k, q.shape[2], k.shape[2], 0.0, causal, False, scale=scale
    )
    return _batched(out, len(q)), lse.unflatten(1, (len(q), -1)).transpose(0, 1)


def _flash_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    unused = torch.zeros(2, dtype=torch.int64, device=q.device)  # state of a dropout that there is not
    grads = aten._flash_attention_backward(
        _flat(d_out),
        _flat(q),
        _flat(k),
        _flat(v),
        _flat(out),
        lse.transpose(0, 1).flatten(1).contiguous(),
        _ends(q),
        _ends(k),
        q.shape[2],
        k.shape[2],
        0.0,
        causal,
        unused,
        unused,
        scale=scale,
    )
    d_q, d_k, d_v = (_batched(grad, len(q)) for grad in grads)
    return d_q, d_k, d_v


def _flat(states_BHTD: Tensor) -> Tensor:
    """(B * T, H, D)."""
    return states_BHTD.transpose(1, 2).flatten(0, 1)


def _batched(states: Tensor, batch: int) -> Tensor:
    """(B, H, T, D) of (B * T, H, D)."""
    return states.unflatten(0, (batch, -1)).transpose(1, 2)


def _ends(states_BHTD: Tensor) -> Tensor:
    batch, _, length, _ = states_BHTD.shape
    return torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=states_BHTD.device)


def _efficient_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    heads = q.shape[1]
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(
        q, _repeated(k, heads), _repeated(v, heads), None, True, 0.0, causal, scale=scale
    )
    return out, lse[..., : q.shape[2]]


def _efficient_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    heads, groups = q.shape[1], k.shape[1]
    # The kernel's own alignment; it reads rows of a gathered lse as if they were contiguous.
    padded = torch.nn.functional.pad(lse.contiguous(), (0, -q.shape[2] % 32), value=float("inf"))
    seed = torch.zeros((), dtype=torch.int64, device=q.device)
    d_q, d_k, d_v, _ = aten._scaled_dot_product_efficient_attention_backward(
        d_out,
        q,
        _repeated(k, heads),
        _repeated(v, heads),
        None,
        out,
        padded,
        seed,
        seed,
        0.0,
        [True, True, True, False],
        causal,
        scale=scale,
    )
    return d_q, _summed(d_k, groups), _summed(d_v, groups)


def _plain_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    return _mixed(_scores(q, k, causal, scale), v)


def _plain_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    heads, groups = q.shape[1], k.shape[1]
    share = (_scores(q, k, causal, scale) - lse[..., None]).exp().to(q)
    d_share = d_out @ _repeated(v, heads).mT
    d_scores = share * (d_share - (d_out * out).sum(-1, keepdim=True)) * scale
    return (
        d_scores @ _repeated(k, heads),
        _summed(d_scores.mT @ q, groups),
        _summed(share.mT @ d_out, groups),
    )


def _mixed(scores: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(v) @ _repeated(v, scores.shape[1]), lse


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    scores = (q @ _repeated(k, q.shape[1]).mT) * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.to(lse_dtype(q))


def lse_dtype(states: Tensor) -> torch.dtype:
    return torch.float64 if states.dtype == torch.float64 else torch.float32


def _repeated(states_BKSD: Tensor, heads: int) -> Tensor:
    return states_BKSD.repeat_interleave(heads // states_BKSD.shape[1], dim=1)


def _summed(states_BHSD: Tensor, groups: int) -> Tensor:
    return states_BHSD.unflatten(1, (groups, -1)).sum(2)


CPU = Kernel("cpu", _cpu_forward, _cpu_backward)
FLASH = Kernel("flash", _flash_forward, _flash_backward)
EFFICIENT = Kernel("efficient", _efficient_forward, _efficient_backward)
PLAIN = Kernel("plain", _plain_forward, _plain_backward)
"""Written out; for devices that have no kernel of their own, and for comparison. Holds all scores at once."""
KERNELS = {kernel.name: kernel for kernel in (CPU, FLASH, EFFICIENT, PLAIN)}
