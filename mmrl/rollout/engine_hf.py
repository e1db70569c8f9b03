"""Rollout engine on plain transformers: one prefill per group, state kept between turns, exact log-probs.

Waiting requests are answered in waves. In a wave, episodes that start from one prompt share its prefill; the KV cache
is then expanded to the siblings. Rows leave the batch as they finish. An episode's own KV stays until its release, so
that a later turn computes only what was appended.

Shapes: B rows, T tokens, L layers, H KV heads, D head width, V vocabulary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from mmrl.cache.features import FeatureCache
from mmrl.models.embed import Embedded, Placed, fill
from mmrl.models.logprob import processed_logprobs
from mmrl.protocols import Completion, ModelFamily, Request
from mmrl.rollout.seeds import uniforms
from mmrl.types import Media, MediaSpan, Tokens

COMPACT_BELOW = 0.75
"""Rows are dropped from the batch once no more than this share of it is still writing."""


@dataclass(slots=True)
class _Episode:
    """What is kept of an episode between its turns."""

    ids: list[int] = field(default_factory=list)
    spans: list[MediaSpan] = field(default_factory=list)
    media: dict[str, Media] = field(default_factory=dict)
    kv: torch.Tensor | None = None
    """(L, 2, H, T, D); covers a prefix of `ids` that lacks at least the last token."""

    def append(self, tokens: Tokens, media: Sequence[Media]) -> None:
        at = len(self.ids)
        self.media.update((medium.key, medium) for medium in media)
        self.ids += tokens.ids
        self.spans += [replace(span, start=span.start + at) for span in tokens.spans]

    @property
    def cached(self) -> int:
        return 0 if self.kv is None else self.kv.shape[3]


class HFEngine:
    """Implements RolloutEngine in process.

    Args:
        batch_size: rows decoded together at most.
        deterministic: a wave starts only when every open episode waits, so that batches do not depend on timing.
    """

    def __init__(
        self, model: Any, family: ModelFamily, features: FeatureCache, *, batch_size: int, deterministic: bool
    ) -> None:
        self.model, self.family, self.features = model, family, features
        self.batch_size, self.deterministic = batch_size, deterministic
        self.version = 0
        # Off the event loop, tools run while tokens are decoded; one thread, since each has its own OpenMP pool.
        self._thread = None if deterministic else ThreadPoolExecutor(1)
        self._episodes: dict[str, _Episode] = {}
        self._waiting: dict[str, tuple[Request, asyncio.Future[Completion]]] = {}
        self._wave: asyncio.Task[None] | None = None

    def open(self, episode: str) -> None:
        self._episodes[episode] = _Episode()

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

    def _start_wave(self) -> None:
        busy = self._wave is not None and not self._wave.done()
        held = self.deterministic and len(self._waiting) < len(self._episodes)
        if self._waiting and not busy and not held:
            self._wave = asyncio.get_running_loop().create_task(self._run_wave())

    async def _run_wave(self) -> None:
        wave = sorted(self._waiting.values(), key=lambda item: item[0].order)
        self._waiting.clear()
        fresh = [item for item in wave if self._episodes[item[0].episode].kv is None]
        going_on = [item for item in wave if self._episodes[item[0].episode].kv is not None]
        for part in (fresh, going_on):
            for at in range(0, len(part), self.batch_size):
                await self._answer(part[at : at + self.batch_size])
        self._wave = None
        self._start_wave()

    async def _answer(self, batch: Sequence[tuple[Request, asyncio.Future[Completion]]]) -> None:
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
        firsts, index = _distinct(requests, episodes)
        rows = _prefill(self, [episodes[first] for first in firsts])
        rows.select(torch.tensor(index))
        writer = _Writer(self, requests, episodes, rows)
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

    def embed(
        self, ids_BT: torch.Tensor, positions_3BT: torch.Tensor, episodes: Sequence[_Episode], lengths: Sequence[int]
    ) -> Embedded:
        """Embeddings of left-padded ids, the last `lengths[b]` tokens of each episode, with media filled in."""
        spans = [
            (row, span, episode.media[span.key], ids_BT.shape[1] - len(episode.ids) + span.start)
            for row, (episode, length) in enumerate(zip(episodes, lengths, strict=True))
            for span in episode.spans
            if span.start >= len(episode.ids) - length
        ]
        features = self.features.encode([medium for _, _, medium, _ in spans])
        placed = [
            Placed(row=row, start=start, features=features[span.key][span.offset : span.offset + span.length])
            for row, span, _, start in spans
        ]
        return fill(self.model.get_input_embeddings()(ids_BT), positions_3BT, placed)


def _distinct(requests: Sequence[Request], episodes: Sequence[_Episode]) -> tuple[list[int], list[int]]:
    """(first request of each distinct start, index of its start for every request)."""
    starts: dict[Any, int] = {}
    firsts: list[int] = []
    index = []
    for number, (request, episode) in enumerate(zip(requests, episodes, strict=True)):
        name = request.group if len(episode.ids) == len(request.new.ids) else number
        if starts.setdefault(name, len(firsts)) == len(firsts):
            firsts.append(number)
        index.append(starts[name])
    return firsts, index


class _Rows:
    """A batch in flight: KV cache, which keys are real, next positions and the last hidden states."""

    def __init__(self, cache: DynamicCache, valid_BT: torch.Tensor, next_B: torch.Tensor, hidden_BD: torch.Tensor):
        self.cache, self.valid_BT, self.next_B, self.hidden_BD = cache, valid_BT, next_B, hidden_BD

    def select(self, index: torch.Tensor) -> None:
        """Keep the rows of `index`, in its order and as often as it names them."""
        index = index.to(self.valid_BT.device)
        self.cache.reorder_cache(index)  # recurrent layers know no batch_select_indices
        self.valid_BT, self.next_B = self.valid_BT[index], self.next_B[index]
        self.hidden_BD = self.hidden_BD[index]

    def kv(self, row: int) -> torch.Tensor:
        """(L, 2, H, T, D) of one row, without padding."""
        valid = self.valid_BT[row]
        return torch.stack(
            [torch.stack([layer.keys[row][:, valid], layer.values[row][:, valid]]) for layer in self.cache.layers]
        )


def _prefill(engine: HFEngine, episodes: Sequence[_Episode]) -> _Rows:
    """Compute what each episode's KV does not cover yet. Past and new tokens are each padded on the left."""
    device = engine.model.device
    past = [episode.cached for episode in episodes]
    new = [len(episode.ids) - cached for episode, cached in zip(episodes, past, strict=True)]
    ids = torch.full((len(episodes), max(new)), engine.family.eos_ids[0])
    positions = torch.zeros((3, len(episodes), max(new)), dtype=torch.long)
    valid = torch.zeros((len(episodes), max(past) + max(new)), dtype=torch.bool)
    for row, (episode, cached, count) in enumerate(zip(episodes, past, new, strict=True)):
        tokens = Tokens(ids=tuple(episode.ids), spans=tuple(episode.spans))
        ids[row, -count:] = torch.tensor(episode.ids[cached:])
        positions[:, row, -count:] = torch.from_numpy(engine.family.positions(tokens)[:, cached:])
        valid[row, max(past) - cached : max(past)] = True
        valid[row, -count:] = True
    ids, positions, valid = ids.to(device), positions.to(device), valid.to(device)
    cache = _past_cache(engine, episodes, max(past))
    inputs = engine.embed(ids, positions, episodes, new)
    mask = prefill_mask(valid, max(new))
    hidden = engine.family.hidden_states(engine.model, inputs, mask, cache, valid[:, -max(new) :])
    return _Rows(cache, valid, positions[:, :, -1].amax(0) + 1, hidden[:, -1])


def _past_cache(engine: HFEngine, episodes: Sequence[_Episode], length: int) -> DynamicCache:
    """The episodes' KV as one cache, padded on the left to `length`."""
    config = engine.model.config.get_text_config(decoder=True)
    cache = DynamicCache(config=config) if engine.family.recurrent else DynamicCache()
    if length == 0:
        return cache
    first = episodes[0].kv
    assert first is not None
    layers, _, heads, _, width = first.shape
    joined = first.new_zeros((layers, 2, len(episodes), heads, length, width))
    for row, episode in enumerate(episodes):
        assert episode.kv is not None
        joined[:, :, row, :, length - episode.cached :] = episode.kv
    for layer in range(layers):
        cache.update(joined[layer, 0], joined[layer, 1], layer)
    return cache


def prefill_mask(valid_BT: torch.Tensor, new: int) -> torch.Tensor:
    """(B, 1, new, T) causal mask of the last `new` tokens over all T keys, True where attention is allowed.

    Padding attends to itself: a row of the softmax without any key would be NaN and spread through the values.
    """
    total = valid_BT.shape[1]
    query = torch.arange(total - new, total, device=valid_BT.device)[:, None]
    key = torch.arange(total, device=valid_BT.device)[None, :]
    return ((key <= query) & valid_BT[:, None, :] | (key == query))[:, None]


class _Writer:
    """Samples token by token until every row has ended its turn."""

    def __init__(
        self, engine: HFEngine, requests: Sequence[Request], episodes: Sequence[_Episode], rows: _Rows
    ) -> None:
        self.engine, self.requests, self.episodes, self.rows = engine, requests, episodes, rows
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
            self._sample(step)
            if all(self.done[number] for number in self.active):
                self._keep(range(len(self.active)))
                return
            self._compact()
            self._advance()
            step += 1

    def _sample(self, step: int) -> None:
        """Choose one token for every row, by inverse CDF of the request's own random numbers."""
        logits = self.engine.model.lm_head(self.rows.hidden_BD)
        temperature = self.temperature[self.active]
        greedy = temperature == 0
        divisor = torch.from_numpy(np.where(greedy, 1.0, temperature)[:, None]).to(logits.device, torch.float32)
        logprobs = processed_logprobs(logits, divisor, self.engine.family.reserved_ids)
        chosen = choose(logprobs, torch.from_numpy(self.uniform[self.active, step]), greedy)
        self.chosen = chosen
        picked = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
        for number, token, logprob in zip(self.active, chosen.tolist(), picked, strict=True):
            if not self.done[number]:
                self.ids[number].append(token)
                self.logprobs[number].append(logprob)
                full = len(self.ids[number]) >= self.requests[number].max_tokens
                self.stopped[number] = token in self.engine.family.eos_ids or self._wrote_stop(number)
                self.done[number] = full or self.stopped[number]

    def _wrote_stop(self, number: int) -> bool:
        """Whether the last tokens hold one of the request's stop strings. A token is a byte or more."""
        stop = self.requests[number].stop
        if not stop:
            return False
        tail = self.engine.family.decode(self.ids[number][-max(len(text.encode()) for text in stop) :])
        return any(text in tail for text in stop)

    def _compact(self) -> None:
        keep = [row for row, number in enumerate(self.active) if not self.done[number]]
        if len(keep) > COMPACT_BELOW * len(self.active):
            return
        self._keep([row for row, number in enumerate(self.active) if self.done[number]])
        index = torch.tensor(keep, device=self.chosen.device)
        self.rows.select(index)
        self.chosen = self.chosen[index]
        self.active = [self.active[row] for row in keep]

    def _keep(self, rows: Sequence[int]) -> None:
        """Store finished rows' tokens and KV with their episodes."""
        for row in rows:
            number = self.active[row]
            episode = self.episodes[number]
            episode.ids += self.ids[number]
            if self.engine.family.recurrent:  # a state cannot be cut back to where this row ended
                continue
            # The last token was sampled but not computed; rows that waited for others hold more than their own.
            episode.kv = self.rows.kv(row)[:, :, :, : len(episode.ids) - 1].clone()

    def _advance(self) -> None:
        rows, model = self.rows, self.engine.model
        embeds = model.get_input_embeddings()(self.chosen)[:, None]
        inputs = Embedded(embeds_BTD=embeds, positions_3BT=rows.next_B.expand(3, -1)[:, :, None])
        rows.valid_BT = torch.cat([rows.valid_BT, rows.valid_BT.new_ones((len(self.active), 1))], dim=1)
        mask = rows.valid_BT[:, None, None, :]
        rows.hidden_BD = self.engine.family.hidden_states(model, inputs, mask, rows.cache)[:, -1]
        rows.next_B = rows.next_B + 1


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
