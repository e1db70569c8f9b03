"""The one call into a checkpoint's text model."""

from __future__ import annotations

from typing import Any

import torch


def forward(
    model: Any,
    embeds_BTD: torch.Tensor,
    positions_3BT: torch.Tensor,
    mask: torch.Tensor | None,
    cache: Any = None,
) -> torch.Tensor:
    """(B, T, D) last hidden states, with explicit positions.

    Args:
        mask: (B, 1, queries, keys), True where attention is allowed; None is plain causal attention.
        cache: transformers Cache that holds the keys of earlier tokens and takes those of these.
    """
    # A mapping is taken as it is: transformers then derives no mask of its own from positions or padding.
    masks = {"full_attention": mask, "sliding_attention": mask}
    output = model.model.language_model(
        inputs_embeds=embeds_BTD,
        position_ids=positions_3BT,
        attention_mask=masks,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden
