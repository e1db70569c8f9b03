"""What runs inside a vLLM server's workers: weights are read from the folder that the trainer wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mmrl.rollout.vllm_inprocess import pack_tied_head


class WeightReader:
    """vLLM's worker_extension_cls: its methods become the worker's."""

    def take_weights(self: Any, folder: str) -> None:
        """RuntimeError where a weight of the model is not among them: vLLM only warns."""
        model = self.get_model()
        with load_noted(model) as loaded:
            self.reload_weights(weights_iterator=read_weights(Path(folder)))
        missing = sorted({name for name, _ in model.named_parameters()} - loaded)
        if missing and self.model_config.quantization is None:  # else they have further parameters
            raise RuntimeError(f"{folder} has no weights for {', '.join(missing[:5])}")
        pack_tied_head(model)


@contextmanager
def load_noted(model: Any) -> Iterator[set[str]]:
    """Names of the parameters that `model.load_weights` loads in between."""
    loaded: set[str] = set()
    load = model.load_weights

    def noted(weights: Any) -> set[str]:
        loaded.update(load(weights))
        return loaded

    model.load_weights = noted
    try:
        yield loaded
    finally:
        del model.load_weights


def read_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a folder's safetensors by name; FileNotFoundError where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no weights: does this machine see the trainer's folder?")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_tensor(name)
