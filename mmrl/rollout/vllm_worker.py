"""What runs inside vLLM's workers, in the trainer's process and in servers: they take the trainer's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

Weights = Iterator[tuple[str, torch.Tensor]]
"""Under their names in the hub's files."""


class PolicyLoader:
    """vLLM's worker_extension_cls: its methods become the worker's."""

    def load_policy(self: Any, weights: Weights) -> None:
        """RuntimeError where a weight of the model is not among them: vLLM only warns."""
        model = self.get_model()
        with recorded_loads(model) as loaded:
            self.reload_weights(weights_iterator=weights)
        missing = sorted({name for name, _ in model.named_parameters()} - loaded)
        if missing and self.model_config.quantization is None:  # else they have further parameters
            raise RuntimeError(f"there are no weights for {', '.join(missing[:5])}")
        pack_tied_head(model)

    def load_policy_files(self: Any, folder: str) -> None:
        self.load_policy(read_weights(Path(folder)))


@contextmanager
def recorded_loads(model: Any) -> Iterator[set[str]]:
    """Names of the parameters that `model.load_weights` loads in between."""
    loaded: set[str] = set()
    load = model.load_weights

    def record(weights: Any) -> set[str]:
        loaded.update(load(weights))
        return loaded

    model.load_weights = record
    try:
        yield loaded
    finally:
        del model.load_weights


def pack_tied_head(model: torch.nn.Module) -> None:
    """On a CPU a head has a packed copy of its weight, which a reload forgets where the weight is the embeddings'."""
    for module in model.modules():
        if type(module).__name__ == "ParallelLMHead" and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)  # type: ignore[operator, union-attr]


def read_weights(folder: Path) -> Weights:
    """Tensors of a folder's safetensors by name; FileNotFoundError where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no weights: does this machine see the trainer's folder?")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_tensor(name)
