"""What runs inside a vLLM server's workers: weights are read from the folder that the trainer wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mmrl.rollout.vllm_inprocess import pack_tied_head


class WeightReader:
    """vLLM's worker_extension_cls: its methods become the worker's."""

    def take_weights(self: Any, folder: str) -> None:
        self.reload_weights(weights_iterator=read_weights(Path(folder)))
        pack_tied_head(self.get_model())


def read_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a folder's safetensors by name; FileNotFoundError where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no weights: does this machine see the trainer's folder?")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_tensor(name)
