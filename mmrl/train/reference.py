"""The reference policy of a model with an adapter: the same model, its adapter as it was when the stage began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmrl.models.lora import adapter_parameters, holding, read_adapter
from mmrl.train.engine import TorchEngine
from mmrl.types import Media, Row


class AdapterReference:
    """Gives log-probs as TorchEngine does; base weights are shared with the policy.

    An adapter that had learned nothing when the stage began adds exact zeros: the reference is then the base model.

    Args:
        engine: over the policy's model; without an optimiser.
        folder: where the adapter of the stage's start was saved.
    """

    def __init__(self, engine: TorchEngine, model: Any, folder: Path) -> None:
        self.engine, self.temperature = engine, 1.0
        self.adapter = adapter_parameters(model)
        found = read_adapter(folder)
        self.began = {name: found[name].to(own.device, own.dtype) for name, own in self.adapter.items()}

    def logprobs(self, rows: Sequence[Row], media: Mapping[str, Media]) -> torch.Tensor:
        """(N,) log-prob of every target, flat in row order."""
        self.engine.temperature = self.temperature
        with holding(self.adapter, self.began):
            return self.engine.logprobs(rows, media)
