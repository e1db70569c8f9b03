"""Puts the vLLM engine together from the configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmrl.cache.features import FeatureCache
from mmrl.cache.shared import SharedFeatures
from mmrl.config import EpisodeSection, RolloutSection
from mmrl.models import lora as adapters
from mmrl.models.load import Checkpoint, hub_weights
from mmrl.rollout.engine_vllm import Backend, VllmEngine
from mmrl.rollout.vllm_arguments import vllm_arguments
from mmrl.rollout.vllm_inprocess import InProcess


def open_vllm(
    checkpoint: Checkpoint,
    features: FeatureCache,
    folder: str | Path,
    rollout: RolloutSection,
    episode: EpisodeSection,
    *,
    logs: Path,
    tell: Callable[[str], None],
) -> VllmEngine:
    """vLLM in this process, or in the servers of the configuration.

    Args:
        folder: the checkpoint's, or its adapter's, for its configuration; the weights are those of the model.
        logs: folder of the servers' logs.
        tell: is given a line for what happens to servers.
    """
    folder = adapters.base_of(folder) if adapters.is_folder(folder) else folder
    shared = SharedFeatures(rollout.folder)
    try:
        arguments = vllm_arguments(
            checkpoint.family,
            folder,
            dtype=str(checkpoint.model.dtype).removeprefix("torch."),
            features=shared.folder,
            max_context=episode.max_context + episode.max_turn_tokens,
            batch_size=rollout.batch_size,
            further=rollout.vllm,
        )
        backend: Backend
        if rollout.servers is None:
            backend = InProcess(beside_trainer() | arguments)
        else:
            from mmrl.rollout.vllm_servers import Servers

            backend = Servers(rollout.servers, arguments, shared, logs, tell=tell)
    except BaseException:
        shared.close()
        raise
    return VllmEngine(
        backend, checkpoint.family, features, shared, partial(hub_weights, checkpoint.model, checkpoint.kind)
    )


def beside_trainer() -> dict[str, Any]:
    """Arguments of an engine that shares its GPU with the trainer."""
    return {"enable_sleep_mode": True, "gpu_memory_utilization": 0.5} if torch.cuda.is_available() else {}
