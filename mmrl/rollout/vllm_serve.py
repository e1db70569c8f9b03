"""mmrl serve-engine: one vLLM server in the foreground, for a trainer on another machine that sees the same folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mmrl.config import RolloutSection
from mmrl.errors import ConfigError
from mmrl.models.chatml import ChatML
from mmrl.models.load import find_kind
from mmrl.rollout.vllm_arguments import vllm_arguments
from mmrl.rollout.vllm_process import LOOPBACK, serve_command, serve_environment


def serve(
    model: str,
    *,
    host: str,
    port: int,
    folder: Path,
    dtype: str,
    max_context: int,
    token_env: str,
    settings: Sequence[str],
) -> None:
    """Become `vllm serve`. ConfigError for a server that others could reach without a token.

    Args:
        folder: rollout.folder of the trainer.
        dtype: of the weights: the trainer's model.dtype.
        max_context: tokens of an episode at most: the trainer's episode.max_context + episode.max_turn_tokens.
        token_env: environment variable that holds the token.
        settings: "key=value" of vLLM's arguments.
    """
    token = os.environ.get(token_env, "").strip()
    if host not in LOOPBACK and not token:
        raise ConfigError(
            f"--host {host}: others could change its weights; put a token into the environment variable {token_env}, "
            "here and at the trainer, or listen on 127.0.0.1"
        )
    arguments = vllm_arguments(
        load_family(model),
        model,
        dtype=dtype,
        features=folder.absolute(),
        max_context=max_context,
        batch_size=RolloutSection().batch_size,
        further=dict(map(_setting, settings)),
    )
    file = Path(tempfile.mkdtemp(prefix="mmrl-serve-")) / "vllm.yaml"
    command = serve_command(arguments, host, port, file)
    os.execve(command[0], command, serve_environment(token))


def load_family(model: str) -> ChatML:
    """A checkpoint's family, by its configuration alone."""
    from transformers import AutoConfig, AutoProcessor

    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError):
        raise ConfigError(f"{model}: no checkpoint that transformers knows") from None
    family = find_kind(config.model_type).family
    return family.from_config(getattr(config, "thinker_config", config), AutoProcessor.from_pretrained(model))


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text!r}: write key=value, e.g. gpu_memory_utilization=0.8")
    return key, yaml.safe_load(value)
