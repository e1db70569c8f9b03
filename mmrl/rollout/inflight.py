"""A batch of rows that are being written: what was computed of them, and how the next tokens are.

A prompt is computed once, in one packed sequence with the others of its batch, and its keys stay where they are: its
siblings attend to them together (mmrl/attention/prefix.py). Recurrent layers have states in place of keys, which are
copied to every sibling.

Shapes: B rows, T tokens, L layers, H KV heads, D head width (hidden width for states).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import DynamicCache

from mmrl.attention.prefix import Prefix, SharedPrefixes
from mmrl.attention.tree import Node, Tree
from mmrl.cache.features import FeatureCache, chunks
from mmrl.models.embed import Embedded, Placed, fill
from mmrl.protocols import ModelFamily
from mmrl.types import Media, MediaSpan, Tokens

PREFILL_TOKENS = 1 << 15
"""Tokens of prompts that are computed at once; a longer prompt goes alone."""


@dataclass(slots=True)
class Episode:
    """What is kept of an episode between its turns."""

    ids: list[int] = field(default_factory=list)
    spans: list[MediaSpan] = field(default_factory=list)
    media: dict[str, Media] = field(default_factory=dict)
    prefix: Prefix | None = None
    """Its prompt, shared with its siblings."""
    kv: torch.Tensor | None = None
    """(L, 2, H, T, D) of what follows the prompt, but for the last token at least."""

    def append(self, tokens: Tokens, media: Sequence[Media]) -> None:
        at = len(self.ids)
        self.media.update((medium.key, medium) for medium in media)
        self.ids += tokens.ids
        self.spans += [replace(span, start=span.start + at) for span in tokens.spans]

    @property
    def own(self) -> int:
        """Tokens behind the prompt whose keys are held."""
        return 0 if self.kv is None else self.kv.shape[3]

    @property
    def held(self) -> int:
        """Tokens whose keys are held."""
        return self.own + (0 if self.prefix is None else self.prefix.length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The model with all that it takes to compute its hidden states."""

    model: Any
    family: ModelFamily
    features: FeatureCache

    def embed(self, ids_BT: torch.Tensor, positions_3BT: torch.Tensor, shown: Sequence[Shown]) -> Embedded:
        features = self.features.encode([place.medium for place in shown])
        placed = [place.placed(features[place.span.key]) for place in shown]
        device = self.model.device
        return fill(self.model.get_input_embeddings()(ids_BT.to(device)), positions_3BT.to(device), placed)

    def positions(self, episode: Episode) -> torch.Tensor:
        """(3, T) of all its tokens."""
        tokens = Tokens(ids=tuple(episode.ids), spans=tuple(episode.spans))
        return torch.from_numpy(self.family.positions(tokens))


@dataclass(frozen=True, slots=True)
class Shown:
    """A medium's place in a batch."""

    row: int
    start: int
    span: MediaSpan
    medium: Media

    def placed(self, features: torch.Tensor) -> Placed:
        part = features[self.span.offset : self.span.offset + self.span.length]
        return Placed(row=self.row, start=self.start, features=part)


def shown(episode: Episode, row: int, shift: int, first: int = 0) -> list[Shown]:
    """The episode's media from its token `first` on; token t stands at t + shift of the row."""
    spans = [span for span in episode.spans if span.start >= first]
    return [Shown(row, span.start + shift, span, episode.media[span.key]) for span in spans]


class Rows:
    """Rows in flight: keys of their own, which of these are real, next positions and the last hidden states."""

    def __init__(
        self,
        network: Network,
        cache: DynamicCache,
        valid_BT: torch.Tensor,
        next_B: torch.Tensor,
        hidden_BD: torch.Tensor,
        prefixes: SharedPrefixes | None,
    ) -> None:
        self.network, self.cache, self.prefixes = network, cache, prefixes
        self.valid_BT, self.next_B, self.hidden_BD = valid_BT, next_B, hidden_BD

    def select(self, index: Sequence[int]) -> None:
        """Keep the rows of `index`, in its order and as often as it names them."""
        chosen = torch.tensor(index, device=self.valid_BT.device)
        self.cache.reorder_cache(chosen)  # recurrent layers know no batch_select_indices
        self.valid_BT, self.next_B = self.valid_BT[chosen], self.next_B[chosen]
        self.hidden_BD = self.hidden_BD[chosen]
        self.prefixes = None if self.prefixes is None else self.prefixes.select(index)

    def advance(self, chosen_B: torch.Tensor) -> None:
        """Compute one more token of every row."""
        model = self.network.model
        embeds = model.get_input_embeddings()(chosen_B)[:, None]
        inputs = Embedded(embeds_BTD=embeds, positions_3BT=self.next_B.expand(3, -1)[:, :, None])
        self.valid_BT = torch.cat([self.valid_BT, self.valid_BT.new_ones((len(chosen_B), 1))], dim=1)
        mask, more = attention(self.valid_BT[:, None, None, :], self.prefixes, embeds.dtype)
        states = self.network.family.hidden_states(model, inputs, mask, self.cache, **more)
        self.hidden_BD, self.next_B = states[:, -1], self.next_B + 1

    def kv(self, row: int) -> torch.Tensor:
        """(L, 2, H, T, D) of one row's own keys and values, without padding."""
        own = self.valid_BT[row].nonzero()[:, 0]
        layers = [torch.stack([layer.keys[row], layer.values[row]]) for layer in self.cache.layers]
        return torch.stack([states.index_select(2, own) for states in layers])


def attention(
    mask: torch.Tensor, prefixes: SharedPrefixes | None, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, Any]]:
    """(mask, further arguments) of `hidden_states`; beside prompts a mask is what is added to the scores."""
    if prefixes is None:
        return mask, {}
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
    return bias, {"prefixes": prefixes}


def start_rows(network: Network, prompts: Sequence[Episode], owner_B: Sequence[int]) -> Rows:
    """Rows that begin with their prompts: row b with prompts[owner_B[b]]. Each prompt is computed once."""
    if network.family.recurrent:
        rows = continue_rows(network, prompts)
        rows.select(owner_B)
        return rows
    found: list[tuple[Prefix, torch.Tensor, torch.Tensor]] = []
    for batch in chunks(prompts, lambda prompt: len(prompt.ids), PREFILL_TOKENS):
        found += _prefill(network, batch)
    prefixes, next_positions, states = zip(*found, strict=True)
    return Rows(
        network,
        DynamicCache(),
        torch.zeros((len(owner_B), 0), dtype=torch.bool, device=network.model.device),
        torch.stack([next_positions[owner] for owner in owner_B]),
        torch.stack([states[owner] for owner in owner_B]),
        SharedPrefixes(prefixes, owner_B),
    )


def _prefill(network: Network, prompts: Sequence[Episode]) -> list[tuple[Prefix, torch.Tensor, torch.Tensor]]:
    """(keys and values, next position, last hidden state) of every prompt, as one packed sequence."""
    nodes, media, at = [], [], 0
    for prompt in prompts:
        nodes.append(Node(at, at + len(prompt.ids), at + len(prompt.ids)))
        media += shown(prompt, 0, at)
        at += len(prompt.ids)
    ids = torch.tensor([[i for prompt in prompts for i in prompt.ids]])
    positions = torch.cat([network.positions(prompt) for prompt in prompts], dim=1)[:, None]
    inputs, cache = network.embed(ids, positions, media), DynamicCache()
    tree = Tree.of(nodes, network.model.device)
    hidden = network.family.hidden_states(network.model, inputs, None, cache, tree=tree)
    return [
        (_prefix(cache, node), inputs.positions_3BT[:, 0, node.start : node.end].max() + 1, hidden[0, node.end - 1])
        for node in nodes
    ]


def _prefix(cache: DynamicCache, node: Node) -> Prefix:
    own = slice(node.start, node.end)
    return Prefix(layers=tuple((layer.keys[0, :, own], layer.values[0, :, own]) for layer in cache.layers))


def continue_rows(network: Network, episodes: Sequence[Episode]) -> Rows:
    """Rows of episodes, with what their keys do not cover yet. Past and new tokens are each padded on the left."""
    past = [episode.own for episode in episodes]
    new = [len(episode.ids) - episode.held for episode in episodes]
    ids = torch.full((len(episodes), max(new)), network.family.eos_ids[0])
    positions = torch.zeros((3, len(episodes), max(new)), dtype=torch.long)
    valid = torch.zeros((len(episodes), max(past) + max(new)), dtype=torch.bool)
    media: list[Shown] = []
    for row, (episode, own, count) in enumerate(zip(episodes, past, new, strict=True)):
        ids[row, -count:] = torch.tensor(episode.ids[-count:])
        positions[:, row, -count:] = network.positions(episode)[:, -count:]
        valid[row, max(past) - own : max(past)] = True
        valid[row, -count:] = True
        media += shown(episode, row, max(new) - len(episode.ids), first=len(episode.ids) - count)
    valid = valid.to(network.model.device)
    inputs, cache, prefixes = network.embed(ids, positions, media), _past(network, episodes), _prefixes(episodes)
    mask, more = attention(prefill_mask(valid, max(new)), prefixes, inputs.embeds_BTD.dtype)
    hidden = network.family.hidden_states(network.model, inputs, mask, cache, valid[:, -max(new) :], **more)
    return Rows(network, cache, valid, inputs.positions_3BT[:, :, -1].amax(0) + 1, hidden[:, -1], prefixes)


def _prefixes(episodes: Sequence[Episode]) -> SharedPrefixes | None:
    found = [episode.prefix for episode in episodes if episode.prefix is not None]
    distinct = {id(prefix): prefix for prefix in found}
    place = {key: number for number, key in enumerate(distinct)}
    return SharedPrefixes(list(distinct.values()), [place[id(prefix)] for prefix in found]) if found else None


def _past(network: Network, episodes: Sequence[Episode]) -> DynamicCache:
    """The episodes' own keys and values as one cache, padded on the left."""
    config = network.model.config.get_text_config(decoder=True)
    cache = DynamicCache(config=config) if network.family.recurrent else DynamicCache()
    length = max(episode.own for episode in episodes)
    first = next((episode.kv for episode in episodes if episode.kv is not None), None)
    if first is None or length == 0:
        return cache
    layers, _, heads, _, width = first.shape
    joined = first.new_zeros((layers, 2, len(episodes), heads, length, width))
    for row, episode in enumerate(episodes):
        if episode.kv is not None:
            joined[:, :, row, :, length - episode.own :] = episode.kv
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
