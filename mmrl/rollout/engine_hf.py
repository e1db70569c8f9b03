"""Rollout engine on plain transformers: one prefill per group, state kept between turns, exact log-probs.

Waiting requests are answered in waves. In a wave, episodes that start from one prompt share its keys. Rows leave the
batch as they finish. An episode's own keys stay until its release: a later turn computes only what was appended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmrl.cache.features import FeatureCache
from mmrl.protocols import Completion, ModelFamily, Request
from mmrl.rollout.inflight import Episode, Network, continue_rows, start_rows
from mmrl.rollout.waves import Waves
from mmrl.rollout.writer import Writer
from mmrl.types import Tokens


class HFEngine(Waves):
    """Implements RolloutEngine in process."""

    def __init__(
        self, model: Any, family: ModelFamily, features: FeatureCache, *, batch_size: int, deterministic: bool
    ) -> None:
        super().__init__(features, batch_size=batch_size, deterministic=deterministic)
        self.model = model
        self.network = Network(model=model, family=family, features=features)

    def check(self, prompt: Tokens) -> None: ...  # whatever the family can encode

    def sleep(self) -> None: ...  # the model is the trainer's own

    def close(self) -> None: ...

    @torch.no_grad()
    def decode(self, requests: Sequence[Request]) -> list[Completion]:
        """Continue every request's episode by one turn; all are new, or all continue."""
        self.model.eval()
        episodes = [self._episodes[request.episode] for request in requests]
        for episode, request in zip(episodes, requests, strict=True):
            episode.append(request.new, request.media)
        if any(episode.held for episode in episodes):
            rows = continue_rows(self.network, episodes)
        else:
            firsts, owner_B = _distinct(requests, episodes)
            rows = start_rows(self.network, [episodes[first] for first in firsts], owner_B)
        writer = Writer(requests, episodes, rows)
        writer.run()
        return [
            Completion(
                ids=tuple(ids),
                logprobs=tuple(logprobs),
                version=self.version,
                stopped=stopped,
            )
            for ids, logprobs, stopped in zip(writer.ids, writer.logprobs, writer.stopped, strict=True)
        ]


def _distinct(requests: Sequence[Request], episodes: Sequence[Episode]) -> tuple[list[int], list[int]]:
    """(first request of each distinct start, index of its start for every request)."""
    starts: dict[Any, int] = {}
    firsts: list[int] = []
    index = []
    for number, (request, episode) in enumerate(zip(requests, episodes, strict=True)):
        is_prompt = len(episode.ids) == len(request.new.ids)
        name = (request.group, request.new) if is_prompt else number
        if starts.setdefault(name, len(firsts)) == len(firsts):
            firsts.append(number)
        index.append(starts[name])
    return firsts, index
