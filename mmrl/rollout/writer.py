"""Samples the turns of a batch of rows, token by token.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mmrl.models.logprob import head_logits, processed_logprobs
from mmrl.protocols import Request
from mmrl.rollout.inflight import Episode, Rows
from mmrl.rollout.seeds import uniforms

COMPACT_BELOW = 0.75
"""Rows are dropped from the batch once no more than this share of it is still writing."""


class Writer:
    """Writes every request's turn to its end."""

    def __init__(self, requests: Sequence[Request], episodes: Sequence[Episode], rows: Rows) -> None:
        self.requests, self.episodes, self.rows = requests, episodes, rows
        self.model, self.family = rows.network.model, rows.network.family
        self.ids: list[list[int]] = [[] for _ in requests]
        self.logprobs: list[list[float]] = [[] for _ in requests]
        self.active = list(range(len(requests)))
        """Request of each row of the batch."""
        self.done = [False] * len(requests)
        self.stopped = [False] * len(requests)
        longest = max(request.max_tokens for request in requests)
        self.uniform = np.stack([uniforms(request.seed, longest) for request in requests])
        self.temperature = np.array([request.temperature for request in requests])

    def run(self) -> None:
        step = 0
        while True:
            chosen_B = self._sample(step)
            if all(self.done[number] for number in self.active):
                self._keep(range(len(self.active)))
                return
            self.rows.advance(self._compact(chosen_B))
            step += 1

    def _sample(self, step: int) -> torch.Tensor:
        """(B,) one token for every row, by inverse CDF of the request's own random numbers."""
        logits = head_logits(self.model.lm_head, self.rows.hidden_BD)
        temperature = self.temperature[self.active]
        greedy = temperature == 0
        divisor = torch.from_numpy(np.where(greedy, 1.0, temperature)[:, None]).to(logits)
        logprobs = processed_logprobs(logits, divisor, self.family.reserved_ids)
        chosen = choose(logprobs, torch.from_numpy(self.uniform[self.active, step]), greedy)
        picked = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
        for number, token, logprob in zip(self.active, chosen.tolist(), picked, strict=True):
            if not self.done[number]:
                self._write(number, token, logprob)
        return chosen

    def _write(self, number: int, token: int, logprob: float) -> None:
        self.ids[number].append(token)
        self.logprobs[number].append(logprob)
        full = len(self.ids[number]) >= self.requests[number].max_tokens
        self.stopped[number] = token in self.family.eos_ids or self._wrote_stop(number)
        self.done[number] = full or self.stopped[number]

    def _wrote_stop(self, number: int) -> bool:
        """Whether the last tokens hold one of the request's stop strings. A token is a byte or more."""
        stop = self.requests[number].stop
        if not stop:
            return False
        tail = self.family.decode(self.ids[number][-max(len(text.encode()) for text in stop) :])
        return any(text in tail for text in stop)

    def _compact(self, chosen_B: torch.Tensor) -> torch.Tensor:
        """Drop rows that are done, where that is worth it; returns the tokens of those that stay."""
        keep = [row for row, number in enumerate(self.active) if not self.done[number]]
        if len(keep) > COMPACT_BELOW * len(self.active):
            return chosen_B
        self._keep([row for row, number in enumerate(self.active) if self.done[number]])
        self.rows.select(keep)
        self.active = [self.active[row] for row in keep]
        return chosen_B[torch.tensor(keep, device=chosen_B.device)]

    def _keep(self, rows: Sequence[int]) -> None:
        """Store finished rows' tokens and keys with their episodes."""
        for row in rows:
            number = self.active[row]
            episode = self.episodes[number]
            episode.ids += self.ids[number]
            if self.family.recurrent:  # a state cannot be cut back to where this row ended
                continue
            if self.rows.prefixes is not None:
                episode.prefix = self.rows.prefixes.of(row)
            # The last token was sampled but not computed; rows that waited for others hold more than their own.
            own = len(episode.ids) - 1 - (0 if episode.prefix is None else episode.prefix.length)
            episode.kv = self.rows.kv(row)[:, :, :, :own].clone() if self.rows.cache.layers else None


def choose(logprobs_BV: torch.Tensor, uniform_B: torch.Tensor, greedy_B: np.ndarray) -> torch.Tensor:
    """(B,) ids: the most likely one where a row is greedy, else one sampled."""
    if greedy_B.all():
        return logprobs_BV.argmax(1)
    chosen = sample(logprobs_BV, uniform_B.to(logprobs_BV.device))
    if greedy_B.any():
        chosen = torch.where(torch.from_numpy(greedy_B).to(chosen.device), logprobs_BV.argmax(1), chosen)
    return chosen


def sample(logprobs_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """(B,) ids by inverse CDF; an id of probability 0 is never chosen."""
    cdf = logprobs_BV.exp().double().cumsum(1)
    goal = uniform_B.double() * cdf[:, -1]
    return torch.searchsorted(cdf, goal[:, None], right=True)[:, 0].clamp(max=logprobs_BV.shape[1] - 1)
