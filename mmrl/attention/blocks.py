"""Attention inside blocks of a sequence, as media towers ask for it: blocks of one length are computed together.

transformers runs such a tower block by block, in a loop, unless its attention is called something with "flash": then it
hands over the whole sequence with the ends of its blocks. A video has a block for every step in time, a batch of small
pictures has hundreds: one call for each length takes a fraction of the time.

Shapes: T tokens, H heads, D head width, N blocks of L tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "mmrl_flash_blocks"


def block_attention(
    module: Any,
    query_1HTD: torch.Tensor,
    key_1HTD: torch.Tensor,
    value_1HTD: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """((1, T, H, D) attention outputs, None), in transformers' attention interface.

    Args:
        cu_seq_lens_q: (blocks + 1,) where each block starts, and the end of the last.
    """
    del module, attention_mask, kwargs
    starts, lengths = cu_seq_lens_q[:-1].long(), cu_seq_lens_q.diff()
    order = [_tokens(starts[lengths == length], int(length)) for length in lengths.unique()]
    outputs = [
        scaled_dot_product_attention(
            _blocks(query_1HTD, index_NL),
            _blocks(key_1HTD, index_NL),
            _blocks(value_1HTD, index_NL),
            dropout_p=dropout,
            scale=scaling,
        )
        for index_NL in order
    ]
    flat = torch.cat([output.transpose(1, 2).flatten(0, 1) for output in outputs])  # (T, H, D), by length
    place = torch.cat([index_NL.flatten() for index_NL in order]).argsort()
    return flat[place][None], None


def _tokens(starts_N: torch.Tensor, length: int) -> torch.Tensor:
    """(N, L) places of the blocks' tokens."""
    return starts_N[:, None] + torch.arange(length, device=starts_N.device)


def _blocks(states_1HTD: torch.Tensor, index_NL: torch.Tensor) -> torch.Tensor:
    """(N, H, L, D) states of the blocks."""
    return states_1HTD[0, :, index_NL].transpose(0, 1)


def use_blocks(tower: Any) -> None:
    """Let a tower compute its attention so."""
    AttentionInterface.register(NAME, block_attention)
    tower.config._attn_implementation = NAME
