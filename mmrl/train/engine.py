"""Train engine in one process: forward, backward and step on what the rows of a step do not share.

Media are encoded once a step: their features are cut off the tower's graph, every micro-batch adds its gradient there,
and one backward through the tower ends the step.

Shapes: N targets of the whole step, M of a micro-batch; both flat in row order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mmrl.cache.features import FeatureCache
from mmrl.models.logprob import target_logprobs
from mmrl.protocols import Loss, LossInputs, ModelFamily
from mmrl.train.forward import Features, packed_states, padded_states
from mmrl.train.packing import MicroBatch, plan
from mmrl.types import Media, Row


class NonFiniteError(RuntimeError):
    """The loss or the gradient is NaN or infinite; the weights were left as they were."""


class TorchEngine:
    """Implements TrainEngine.

    `temperature` is the one that rollouts are sampled with; log-probs are of that distribution.

    Args:
        optimizer: None for a model that only gives log-probs.
        micro_batch_tokens: tokens in one forward, shared ones counted once.
        max_grad_norm: gradients are scaled down to this norm.
        features: encoded media, shared with the rollout engine.
        sharing: False computes every row by itself.
    """

    def __init__(
        self,
        model: Any,
        family: ModelFamily,
        optimizer: torch.optim.Optimizer | None,
        *,
        micro_batch_tokens: int,
        max_grad_norm: float,
        features: FeatureCache | None = None,
        sharing: bool = True,
    ) -> None:
        self.model, self.family, self.optimizer = model, family, optimizer
        self.micro_batch_tokens, self.max_grad_norm = micro_batch_tokens, max_grad_norm
        self.features = features or FeatureCache(model, family)
        self.sharing = sharing and not family.recurrent
        self.temperature = 1.0
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.trains_vision = any(p.requires_grad for tower in family.towers(model) for p in tower.parameters())

    def checkpoint_activations(self, wanted: bool) -> None:
        """Whether the text model keeps each layer's input only, and computes the layer again in the backward."""
        text = self.family.text_model(self.model)
        if wanted:
            text.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            text.gradient_checkpointing_disable()

    def update(self, rows: Sequence[Row], media: Mapping[str, Media], loss: Loss) -> dict[str, float]:
        """One optimiser step. Returns loss, entropy, grad_norm. Raises NonFiniteError and leaves the weights."""
        assert self.optimizer is not None, "this engine only gives log-probs"
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        if self.trains_vision:
            leaves = self.features.leaves(media.values())
            value, entropy = self._backward(rows, leaves.features, loss)
            leaves.backward()
            self.features.clear()
        else:
            value, entropy = self._backward(rows, self.features.encode(media.values()), loss)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        if not (math.isfinite(value) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(f"loss {value}, gradient norm {norm}")
        self.optimizer.step()
        return {"loss": value, "entropy": entropy / max(1, int(target_starts(rows)[-1])), "grad_norm": norm}

    @torch.no_grad()
    def logprobs(self, rows: Sequence[Row], media: Mapping[str, Media]) -> torch.Tensor:
        """(N,) log-prob of every target."""
        self.model.eval()
        features = self.features.encode(media.values())
        starts = target_starts(rows)
        result = torch.empty(int(starts[-1]), dtype=torch.float64)
        for batch in plan(rows, self.micro_batch_tokens, sharing=self.sharing):
            logprobs, _ = self._forward(batch, rows, features)
            result[targets_of(batch, starts)] = logprobs.double().cpu()
        return result

    def _backward(self, rows: Sequence[Row], features: Features, loss: Loss) -> tuple[float, float]:
        """(loss, sum of entropies); gradients gather in the parameters and in features that take some."""
        starts = target_starts(rows)
        value, entropy = 0.0, 0.0
        for batch in plan(rows, self.micro_batch_tokens, sharing=self.sharing):
            logprobs, entropies = self._forward(batch, rows, features)
            index = targets_of(batch, starts)
            terms = loss(LossInputs(logprobs_N=logprobs.detach(), entropies_N=entropies.detach(), index_N=index))
            outputs, weights = [logprobs], [terms.d_logprobs_N.to(logprobs)]
            if terms.d_entropies_N is not None:
                outputs, weights = [*outputs, entropies], [*weights, terms.d_entropies_N.to(entropies)]
            torch.autograd.backward(outputs, weights)
            value += terms.value
            entropy += float(entropies.detach().sum())
        return value, entropy

    def _forward(self, batch: MicroBatch, rows: Sequence[Row], features: Features) -> tuple[torch.Tensor, torch.Tensor]:
        """(log-probs, entropies), each (M,)."""
        states = packed_states if batch.packed else padded_states
        hidden_MD, target_M = states(self.model, self.family, [rows[i] for i in batch.rows], features)
        return target_logprobs(self.model.lm_head, hidden_MD, target_M, self.temperature, self.family.reserved_ids)


def target_starts(rows: Sequence[Row]) -> np.ndarray:
    """(rows + 1,) where each row's targets start in the flat list of targets."""
    return np.concatenate([[0], np.cumsum([len(row.target_N) for row in rows])]).astype(np.int64)


def targets_of(batch: MicroBatch, starts: np.ndarray) -> torch.Tensor:
    """(M,) indices of a micro-batch's targets among those of the step."""
    return torch.cat([torch.arange(starts[i], starts[i + 1]) for i in batch.rows])
