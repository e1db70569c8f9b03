"""Rollout engine on plain transformers: one prefill per group, state kept between turns, exact log-probs.

Waiting requests are answered in waves. In a wave, episodes that start from one prompt share its keys. Rows leave the
batch as they finish. An episode's own keys stay until its release: a later turn computes only what was appended.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from mmrl.cache.features import FeatureCache
from mmrl.protocols import Completion, ModelFamily, Request
from mmrl.rollout.inflight import Episode, Network, continue_rows, start_rows
from mmrl.rollout.writer import Writer
from mmrl.types import Tokens

Waiting = tuple[Request, asyncio.Future[Completion]]


class HFEngine:
    """Implements RolloutEngine in process.

    Args:
        batch_size: episodes answered together at most.
        deterministic: a wave starts only when every open episode waits, so that batches do not depend on timing.
    """

    def __init__(
        self, model: Any, family: ModelFamily, features: FeatureCache, *, batch_size: int, deterministic: bool
    ) -> None:
        self.model, self.features, self.batch_size, self.deterministic = model, features, batch_size, deterministic
        self.network = Network(model=model, family=family, features=features)
        self.version = 0
        # Off the event loop, tools run while tokens are decoded; one thread, since each has its own OpenMP pool.
        self._thread = None if deterministic else ThreadPoolExecutor(1)
        self._episodes: dict[str, Episode] = {}
        self._waiting: dict[str, Waiting] = {}
        self._wave: asyncio.Task[None] | None = None

    def check(self, prompt: Tokens) -> None: ...  # whatever the family can encode

    def open(self, episode: str, group: str) -> None:
        del group  # siblings are found by their prompt
        self._episodes[episode] = Episode()

    def release(self, episode: str) -> None:
        self._episodes.pop(episode, None)
        self._start_wave()

    def weights_changed(self, *, vision: bool) -> None:
        """Enter the next policy version. Features survive unless the vision tower was trained."""
        assert not self._episodes, "weights may only change between episodes"
        self.version += 1
        if vision:
            self.features.clear()

    async def generate(self, request: Request) -> Completion:
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting[request.episode] = (request, future)
        self._start_wave()
        return await future

    def sleep(self) -> None: ...  # the model is the trainer's own

    def close(self) -> None: ...

    def _start_wave(self) -> None:
        busy = self._wave is not None and not self._wave.done()
        held = self.deterministic and len(self._waiting) < len(self._episodes)
        if self._waiting and not busy and not held:
            self._wave = asyncio.get_running_loop().create_task(self._run_wave())

    async def _run_wave(self) -> None:
        wave = sorted(self._waiting.values(), key=lambda item: item[0].order)
        self._waiting.clear()
        fresh = [item for item in wave if not self._episodes[item[0].episode].held]
        going_on = [item for item in wave if self._episodes[item[0].episode].held]
        for part in (fresh, going_on):
            for batch in _batches(part, self.batch_size):
                await self._answer(batch)
        self._wave = None
        self._start_wave()

    async def _answer(self, batch: Sequence[Waiting]) -> None:
        requests = [request for request, _ in batch]
        try:
            if self._thread is None:
                completions = self.decode(requests)
            else:
                completions = await asyncio.get_running_loop().run_in_executor(self._thread, self.decode, requests)
        except Exception as error:  # a failed batch costs its episodes, not the run
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), completion in zip(batch, completions, strict=True):
            if not future.done():
                future.set_result(completion)

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


def _batches(wave: Sequence[Waiting], size: int) -> list[list[Waiting]]:
    """Batches of up to `size` requests. A group is cut only where it is larger: its prompt is computed in each."""
    batches: list[list[Waiting]] = []
    for _, group in itertools.groupby(wave, key=lambda item: item[0].group):
        siblings = list(group)
        if not batches or len(batches[-1]) + len(siblings) > size:
            batches += [siblings[at : at + size] for at in range(0, len(siblings), size)]
        else:
            batches[-1] += siblings
    return batches
