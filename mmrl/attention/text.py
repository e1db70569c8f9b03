"""The attention function of text models, in transformers' interface: packed trees, shared prefixes, or plain SDPA."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mmrl.attention.prefix import SharedPrefixes, prefix_attention
from mmrl.attention.tree import Tree, tree_attention

NAME = "mmrl_shared_prefix"


def text_attention(
    module: Any,
    query_BHTD: torch.Tensor,
    key_BKSD: torch.Tensor,
    value_BKSD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    tree: Tree | None = None,
    prefixes: SharedPrefixes | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """((B, T, H, D) outputs, None). What is more than plain attention rides in the keywords of the model's forward.

    Args:
        tree: of a packed sequence, B = 1; keys are those of its tokens.
        prefixes: prompts that the rows see beside the keys that are given.
        dropout: not done: a policy is trained as it was sampled.
    """
    del dropout
    if tree is not None:
        return tree_attention(query_BHTD, key_BKSD, value_BKSD, tree, scaling).transpose(1, 2), None
    if prefixes is not None:
        assert attention_mask is not None
        states = (query_BHTD, key_BKSD, value_BKSD, attention_mask)
        return prefix_attention(*states, prefixes, module.layer_idx, scaling).transpose(1, 2), None
    output, _ = sdpa_attention_forward(
        module, query_BHTD, key_BKSD, value_BKSD, attention_mask, scaling=scaling, **kwargs
    )
    return output, None


def use_shared_prefix(text_model: Any) -> None:
    """Let a text model compute its attention so. transformers then makes no mask of its own under this name."""
    AttentionInterface.register(NAME, text_attention)
    text_model.config._attn_implementation = NAME
