"""Attention of decoded rows to prompts whose keys are kept once, however many rows go on from each.

A row sees its prompt's keys, which it shares with its siblings, and its own, which its cache holds; the two are merged
by their log-sum-exps. All rows of a prompt are the queries of one call, that reads the prompt's keys once.

Shapes: B rows, N prompts of P tokens, G rows of a prompt, Q new tokens a row, S own keys a row, H query heads,
K key heads, D head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mmrl.attention.kernels import kernel_for, lse_dtype, masked_forward
from mmrl.attention.tree import merge

Tensor = torch.Tensor
Layers = tuple[tuple[Tensor, Tensor], ...]
STACK_TOKENS = 1 << 15
"""Prompts of one length are computed together as long as they have no more tokens than this: stacking copies keys."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefix:
    """The keys and values of a prompt."""

    layers: Layers
    """(K, P, D) keys and values of each layer."""

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class _Stack:
    """Prompts of one length, and the rows that go on from each."""

    layers: Layers
    """(N, K, P, D) keys and values."""
    index_NG: Tensor
    """Rows of each prompt; one with fewer than G has its last row again."""
    row_B: Tensor
    """These rows, each once."""
    place_B: Tensor
    """Where each of them stands among the N * G."""


class SharedPrefixes:
    """The prompts of a batch of rows.

    Args:
        prefixes: the distinct prompts.
        owner_B: for each row, which of them it goes on from.
        stacked: keys and values of prompts that were stacked before.
    """

    def __init__(
        self,
        prefixes: Sequence[Prefix],
        owner_B: Sequence[int],
        stacked: Mapping[tuple[int, ...], Layers] | None = None,
    ) -> None:
        self.prefixes, self.owner_B = list(prefixes), list(owner_B)
        alike = self._alike()
        self._stacked = {numbers: (stacked or {}).get(numbers) or self._join(numbers) for numbers in alike}
        self._stacks = [self._stack(numbers) for numbers in alike]

    def select(self, index: Sequence[int]) -> SharedPrefixes:
        """Those of the rows of `index`, in its order and as often as it names them."""
        return SharedPrefixes(self.prefixes, [self.owner_B[row] for row in index], self._stacked)

    def of(self, row: int) -> Prefix:
        return self.prefixes[self.owner_B[row]]

    def attend(self, query_BHQD: Tensor, layer: int, scale: float) -> tuple[Tensor, Tensor]:
        """((B, H, Q, D) outputs, (B, H, Q) log-sum-exps) over the prompts' keys."""
        kernel = kernel_for(query_BHQD)
        out, lse = torch.empty_like(query_BHQD), query_BHQD.new_empty(query_BHQD.shape[:3], dtype=lse_dtype(query_BHQD))
        for stack in self._stacks:
            group = stack.index_NG.shape[1]
            query = query_BHQD[stack.index_NG].transpose(1, 2).flatten(2, 3)  # (N, H, G * Q, D)
            found, found_lse = kernel.forward(query, *stack.layers[layer], False, scale)
            for states, part in ((out, found), (lse, found_lse.to(lse))):
                states[stack.row_B] = part.unflatten(2, (group, -1)).transpose(1, 2).flatten(0, 1)[stack.place_B]
        return out, lse

    def _alike(self) -> list[tuple[int, ...]]:
        """Numbers of the prompts that are in use, by length, few enough to stack."""
        batches: list[list[int]] = []
        for number in sorted(set(self.owner_B), key=lambda number: (self.prefixes[number].length, number)):
            length = self.prefixes[number].length
            last = batches[-1] if batches else []
            if last and self.prefixes[last[0]].length == length and (len(last) + 1) * length <= STACK_TOKENS:
                last.append(number)
            else:
                batches.append([number])
        return [tuple(batch) for batch in batches]

    def _join(self, numbers: Sequence[int]) -> Layers:
        found = [self.prefixes[number].layers for number in numbers]
        return tuple(_stack_states(states) for states in zip(*found, strict=True))

    def _stack(self, numbers: tuple[int, ...]) -> _Stack:
        rows = [[row for row, owner in enumerate(self.owner_B) if owner == number] for number in numbers]
        group = max(map(len, rows))
        index = [[*own, *own[-1:] * (group - len(own))] for own in rows]
        place = [number * group + g for number, own in enumerate(rows) for g in range(len(own))]
        device = self._stacked[numbers][0][0].device
        flat = [row for own in rows for row in own]
        return _Stack(self._stacked[numbers], *(torch.tensor(part, device=device) for part in (index, flat, place)))


def _stack_states(states: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(states) == 1:  # a long prompt: no copy
        return states[0][0][None], states[0][1][None]
    return torch.stack([keys for keys, _ in states]), torch.stack([values for _, values in states])


def prefix_attention(
    query_BHQD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    bias_B1QS: Tensor,
    prefixes: SharedPrefixes,
    layer: int,
    scale: float,
) -> Tensor:
    """(B, H, Q, D) outputs over prompts and own keys; no gradients.

    Args:
        bias_B1QS: 0 where a query sees an own key, else -inf; each must see one.
    """
    out, lse = masked_forward(query_BHQD, key_BKSD, value_BKSD, bias_B1QS, scale)
    merge(out, lse, *prefixes.attend(query_BHQD, layer, scale))
    return out
