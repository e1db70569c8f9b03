"""Train engine in one process: the plain padded-batch forward, backward and step.

This forward is the reference that faster paths are compared with. Media are encoded once a step: the tower's output is
cut off the graph, every micro-batch adds its gradient there, and one backward through the tower ends the step.

Shapes: B rows, T padded tokens, D hidden, N targets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from mmrl.models.embed import Placed, fill
from mmrl.models.logprob import target_logprobs
from mmrl.protocols import Loss, LossInputs, ModelFamily
from mmrl.train.rows import micro_batches
from mmrl.types import Media, Row


class NonFiniteError(RuntimeError):
    """The loss or the gradient is NaN or infinite; the weights were left as they were."""


class TorchEngine:
    """Implements TrainEngine.

    `temperature` is the one that rollouts are sampled with; log-probs are of that distribution.

    Args:
        optimizer: None for a model that only gives log-probs.
        micro_batch_tokens: padded tokens in one forward.
        max_grad_norm: gradients are scaled down to this norm.
    """

    def __init__(
        self,
        model: Any,
        family: ModelFamily,
        optimizer: torch.optim.Optimizer | None,
        *,
        micro_batch_tokens: int,
        max_grad_norm: float,
    ) -> None:
        self.model, self.family, self.optimizer = model, family, optimizer
        self.micro_batch_tokens, self.max_grad_norm = micro_batch_tokens, max_grad_norm
        self.temperature = 1.0
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.trains_vision = any(p.requires_grad for tower in family.towers(model) for p in tower.parameters())

    def update(self, rows: Sequence[Row], media: Mapping[str, Media], loss: Loss) -> dict[str, float]:
        """One optimiser step. Returns loss, entropy, grad_norm. Raises NonFiniteError and leaves the weights."""
        assert self.optimizer is not None, "this engine only gives log-probs"
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        features = self._encode(media)
        leaves = {key: value.detach().requires_grad_(self.trains_vision) for key, value in features.items()}
        starts = target_starts(rows)
        value, entropy = 0.0, 0.0
        for batch in micro_batches(rows, self.micro_batch_tokens):
            index = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in batch])
            logprobs, entropies = self._forward([rows[i] for i in batch], leaves)
            terms = loss(LossInputs(logprobs_N=logprobs.detach(), entropies_N=entropies.detach(), index_N=index))
            outputs, weights = [logprobs], [terms.d_logprobs_N.to(logprobs)]
            if terms.d_entropies_N is not None:
                outputs, weights = [*outputs, entropies], [*weights, terms.d_entropies_N.to(entropies)]
            torch.autograd.backward(outputs, weights)
            value += terms.value
            entropy += float(entropies.detach().sum())
        self._backward_vision(features, leaves)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        if not (math.isfinite(value) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(f"loss {value}, gradient norm {norm}")
        self.optimizer.step()
        return {"loss": value, "entropy": entropy / max(1, int(starts[-1])), "grad_norm": norm}

    @torch.no_grad()
    def logprobs(self, rows: Sequence[Row], media: Mapping[str, Media]) -> torch.Tensor:
        """(N,) log-prob of every target, flat in row order."""
        self.model.eval()
        features = self._encode(media)
        starts = target_starts(rows)
        result = torch.empty(int(starts[-1]))
        for batch in micro_batches(rows, self.micro_batch_tokens):
            logprobs, _ = self._forward([rows[i] for i in batch], features)
            result[torch.cat([torch.arange(starts[i], starts[i + 1]) for i in batch])] = logprobs.cpu()
        return result

    def _encode(self, media: Mapping[str, Media]) -> dict[str, torch.Tensor]:
        with torch.set_grad_enabled(self.trains_vision and torch.is_grad_enabled()):
            return dict(zip(media, self.family.encode_media(self.model, list(media.values())), strict=True))

    def _backward_vision(self, features: Mapping[str, torch.Tensor], leaves: Mapping[str, torch.Tensor]) -> None:
        used = [key for key in features if leaves[key].grad is not None]
        if used:
            torch.autograd.backward([features[key] for key in used], [leaves[key].grad for key in used])

    def _forward(self, rows: Sequence[Row], features: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(log-probs, entropies) of the rows' targets, flat in row order."""
        device = self.model.device
        ids = pad_sequence([torch.from_numpy(row.ids_T) for row in rows], batch_first=True).to(device)
        positions = pad_sequence([torch.from_numpy(row.positions_3T.T) for row in rows], batch_first=True)
        embeds = self.model.get_input_embeddings()(ids)
        inputs = fill(embeds, positions.permute(2, 0, 1).to(device), list(placed(rows, features)))
        # Padding stands on the right, where no real token looks: plain causal attention needs no mask.
        hidden = self.family.hidden_states(self.model, inputs, None)
        row_N = torch.cat([torch.full((len(row.source_N),), number) for number, row in enumerate(rows)])
        source_N = torch.cat([torch.from_numpy(row.source_N) for row in rows])
        target_N = torch.cat([torch.from_numpy(row.target_N) for row in rows]).to(device)
        hidden_ND = hidden[row_N.to(device), source_N.to(device)]
        return target_logprobs(self.model.lm_head, hidden_ND, target_N, self.temperature, self.family.reserved_ids)


def placed(rows: Sequence[Row], features: Mapping[str, torch.Tensor]) -> Iterator[Placed]:
    """The features of every media span of the rows."""
    for number, row in enumerate(rows):
        for span in row.spans:
            part = features[span.key][span.offset : span.offset + span.length]
            yield Placed(row=number, start=span.start, features=part)


def target_starts(rows: Sequence[Row]) -> np.ndarray:
    """(rows + 1,) where each row's targets start in the flat list of targets."""
    return np.concatenate([[0], np.cumsum([len(row.target_N) for row in rows])]).astype(np.int64)
