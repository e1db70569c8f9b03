"""What vLLM is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from mmrl.errors import ConfigError
from mmrl.models.chatml import ChatML
from mmrl.models.qwen3_vl import Qwen3VL
from mmrl.resolve import suggest
from mmrl.rollout.vllm_prompt import modalities

FEWEST_BATCHED_TOKENS = 8192
SPLITS = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
"""Arguments of vLLM that split it over devices."""


def vllm_arguments(
    family: ChatML,
    model: str | Path,
    *,
    dtype: str,
    features: Path,
    max_context: int,
    batch_size: int,
    further: Mapping[str, Any],
) -> dict[str, Any]:
    """Arguments of vLLM's engine; `further` are the user's, and win.

    It computes no media, since it reads their features, and so it builds no towers. It gives the log-probs of the
    distribution that it samples from.

    Args:
        dtype: of the weights, e.g. "float32".
        features: folder that features are read from.
        max_context: tokens of an episode at most.
        batch_size: episodes that are decoded together at most.
    """
    check_names(further)
    # The tower of Qwen3-VL is built all the same: without it vLLM takes no DeepStack features.
    limit = 1 if type(family) is Qwen3VL else 0
    arguments = {
        "model": str(model),
        "dtype": dtype,
        "max_model_len": max_context,
        "max_num_batched_tokens": max(max_context, FEWEST_BATCHED_TOKENS),
        "max_num_seqs": batch_size,
        "limit_mm_per_prompt": dict.fromkeys(modalities(family), limit),
        "skip_mm_profiling": True,
        "ec_transfer_config": {
            "ec_connector": "ECExampleConnector",
            "ec_role": "ec_consumer",
            "ec_connector_extra_config": {"shared_storage_path": str(features)},
        },
        "scheduling_policy": "priority",
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": "mmrl.rollout.vllm_worker.PolicyLoader",
        "enforce_eager": not torch.cuda.is_available(),
        # On a CPU a prompt that is computed in parts fails: its random numbers cannot be taken back.
        "enable_chunked_prefill": torch.cuda.is_available(),
        **further,
    }
    if arguments["max_num_batched_tokens"] < arguments["max_model_len"]:
        raise ConfigError(
            f"rollout.vllm: max_num_batched_tokens {arguments['max_num_batched_tokens']} is less than the "
            f"{arguments['max_model_len']} tokens of an episode (episode.max_context + max_turn_tokens): a medium of "
            "that many would not fit vLLM's encoder cache; raise the one or lower the other"
        )
    return arguments


def check_names(further: Mapping[str, Any]) -> None:
    """ConfigError for an argument that vLLM does not know, and without vLLM."""
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
    except ImportError:
        raise ConfigError("rollout.engine: vllm is not installed; pip install 'mmrl[vllm]', or use hf") from None
    known = {field.name for field in fields(AsyncEngineArgs)}
    for name in further:
        if name not in known:
            raise ConfigError(f"rollout.vllm: vLLM has no argument {name!r}{suggest(name, known)}")
