"""Floating-point operations: counted as they run, calculated for the ideal, and what the machine can do in a second.

Causal attention counts half of its square, a masked one the whole of it: that is what the kernels compute.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.bench.task import FRAME_TOKENS, SIDE, Case, grid

PASSES = 3
"""Forward and backward in forwards."""


def flop_counter() -> FlopCounterMode:
    """Counts every product that runs while it is on; torch's own table lacks the CPU's attention."""
    aten = torch.ops.aten
    table = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention(causal=4),
        aten._scaled_dot_product_flash_attention: _attention(causal=4),
        aten._scaled_dot_product_efficient_attention: _attention(causal=6),
        aten._scaled_dot_product_cudnn_attention: _attention(causal=6),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward(causal=7),
        aten._scaled_dot_product_flash_attention_backward: _attention_backward(causal=11),
        aten._scaled_dot_product_efficient_attention_backward: _attention_backward(causal=11),
        aten._scaled_dot_product_cudnn_attention_backward: _attention_backward(causal=14),
        aten._flash_attention_forward: _packed,
        aten._flash_attention_backward: _packed_backward,
    }
    return FlopCounterMode(display=False, custom_mapping=table)


def _attention(causal: int) -> Callable[..., int]:
    """Count of a kernel whose argument `causal` says whether it skips half of the square; shapes are (B, H, T, D)."""

    def count(query: Any, key: Any, *rest: Any, **_: Any) -> int:
        batch, heads, length, width = query
        half = len(rest) > causal - 2 and rest[causal - 2] is True
        return 4 * batch * heads * length * key[2] * width // (1 + half)

    return count


def _attention_backward(causal: int) -> Callable[..., int]:
    """Five products in place of two."""
    forward = _attention(causal - 1)
    return lambda grad, *rest, **named: 5 * forward(*rest, **named) // 2


def _packed(
    query: Any,
    key: Any,
    value: Any,
    ends_q: Any,
    ends_k: Any,
    max_q: int,
    max_k: int,
    dropout: float,
    causal: bool,
    *_: Any,
    **__: Any,
) -> int:
    """Of equally long sequences, (tokens, heads, width)."""
    tokens, heads, width = query
    return 4 * tokens * heads * max_k * width // (1 + causal)


def _packed_backward(grad: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, *rest: Any, **__: Any) -> int:
    return 5 * _packed(query, key, value, *rest[:6]) // 2


def peak_flops(device: str, dtype: torch.dtype) -> float:
    """Operations a second in the best of a hundred products, each short enough to be left alone on a busy CPU."""
    side = 8192 if device == "cuda" else 768
    a = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(100):
        start = clock(device)
        a @ a
        best = min(best, clock(device) - start)
    return 2 * side**3 / best


def clock(device: str) -> float:
    """Seconds, once the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def ideal_flops(model: Any, case: Case, *, freeze_vision: bool) -> dict[str, float]:
    """A step that computes everything shared once: the image for rollout and update, the prompt for each of the two."""
    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    pair = 4 * text.num_attention_heads * width * text.num_hidden_layers
    weights = _linear_weights(model.model.language_model)
    p, g, r = case.prompt_tokens, case.group_size, case.response_tokens
    prompt = 2 * weights * p + pair * p**2 / 2
    response = 2 * weights * r + pair * (p * r + r**2 / 2)
    head = 2 * text.hidden_size * text.vocab_size * r
    encode = encode_flops(model.model.visual, *grid(p - FRAME_TOKENS))
    return {
        "encode": encode,
        "prefill": prompt,
        "decode": g * (response + head),
        "update": (0 if freeze_vision else (PASSES - 1) * encode) + PASSES * (prompt + g * (response + head)),
    }


def encode_flops(tower: Any, height: int, width: int) -> float:
    """Of one image of `height` x `width` vision tokens."""
    config = tower.config
    tokens, merge = height * width, config.spatial_merge_size**2
    side = config.window_size // SIDE
    windows = sum((h * w) ** 2 for h in _cut(height, side) for w in _cut(width, side))
    whole = len(config.fullatt_block_indexes)
    pairs = (whole * tokens**2 + (config.depth - whole) * windows) * merge**2
    per_patch = 2 * _linear_weights(tower.blocks) + 2 * tower.patch_embed.proj.weight.numel()
    merger = tokens * 2 * _linear_weights(tower.merger)
    return tokens * merge * per_patch + 4 * config.hidden_size * pairs + merger


def _cut(length: int, side: int) -> list[int]:
    """The sides of windows along `length`: the last may be smaller."""
    return [min(side, length - start) for start in range(0, length, side)]


def _linear_weights(module: torch.nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, torch.nn.Linear))
