"""Attention over branches that share their beginnings: a prefix is computed once for all that follows it.

A packed sequence is a forest of nodes in depth-first order. A token sees the nodes above its own, and its own node up
to itself. No mask and no copy of keys: each node is attended causally by itself, and once, by all tokens below it
together, since these stand in one run behind it; the parts are merged by their log-sum-exps (kernels.py).

Shapes: T packed tokens, N nodes of up to L tokens, H query heads, K key heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmrl.attention.kernels import Kernel, kernel_for, lse_dtype

Tensor = torch.Tensor
MAX_WASTE = 1.5
"""Nodes are computed together where the longest is at most this many times as long as the shortest."""


@dataclass(frozen=True, slots=True)
class Node:
    """A run of tokens without a branch. Its own are [start, end), those of the nodes below it [end, below)."""

    start: int
    end: int
    below: int


@dataclass(frozen=True, slots=True)
class One:
    """The tokens of one node, in place."""

    node: Node

    def take(self, states: Tensor) -> Tensor:
        return states[:, :, self.node.start : self.node.end]

    def take_gradient(self, states: Tensor) -> Tensor:
        return self.take(states)

    def put(self, states: Tensor, part: Tensor) -> None:
        states[:, :, self.node.start : self.node.end] = part


@dataclass(frozen=True, slots=True, eq=False)
class Several:
    """The tokens of nodes of similar length, gathered to one batch."""

    index_NL: Tensor
    """Places of the tokens; behind a shorter node's end, its last token again."""
    real_NL: Tensor
    token_R: Tensor
    """Places of the real tokens."""
    slot_R: Tensor
    """Where each of them stands among the N * L."""

    def take(self, states: Tensor) -> Tensor:
        """(N, H, L, ...) of (1, H, T, ...)."""
        return states[0].transpose(0, 1)[self.index_NL].transpose(1, 2)

    def take_gradient(self, states: Tensor) -> Tensor:
        """A token that is only there as padding has no say in the loss."""
        return self.take(states) * self.real_NL[:, None, :, None]

    def put(self, states: Tensor, part: Tensor) -> None:
        states[0].transpose(0, 1)[self.token_R] = part.transpose(1, 2).flatten(0, 1)[self.slot_R]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tree:
    """How the tokens of a packed sequence see one another."""

    parts: tuple[One | Several, ...]
    """Every node once, for what it sees of itself."""
    shared: tuple[Node, ...]
    """Nodes that others lie below, from the root down."""

    @classmethod
    def of(cls, nodes: Sequence[Node], device: torch.device | str = "cpu") -> Tree:
        """Args: nodes: in depth-first order, none of them empty; together they cover all tokens."""
        parts = [One(batch[0]) if len(batch) == 1 else _several(batch, device) for batch in _alike(nodes)]
        return cls(parts=tuple(parts), shared=tuple(node for node in nodes if node.below > node.end))


def _alike(nodes: Sequence[Node]) -> list[list[Node]]:
    batches: list[list[Node]] = []
    for node in sorted(nodes, key=lambda node: node.end - node.start):
        if batches and node.end - node.start <= MAX_WASTE * (batches[-1][0].end - batches[-1][0].start):
            batches[-1].append(node)
        else:
            batches.append([node])
    return batches


def _several(nodes: Sequence[Node], device: torch.device | str) -> Several:
    starts, ends = (torch.tensor([getattr(node, name) for node in nodes])[:, None] for name in ("start", "end"))
    index = starts + torch.arange(int((ends - starts).max()))
    real = index < ends
    parts = torch.minimum(index, ends - 1), real, index[real], real.flatten().nonzero()[:, 0]
    return Several(*(part.to(device) for part in parts))


def tree_attention(query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, tree: Tree, scale: float) -> Tensor:
    """(1, H, T, D) outputs; gradients are exact."""
    output: Tensor = _TreeAttention.apply(query_1HTD, key_1KTD, value_1KTD, tree, scale)
    return output


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: Tree, scale: float) -> Tensor:
        kernel = kernel_for(query)
        # In memory (1, T, H, D): what the kernels write and the output projection reads.
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        lse = query.new_empty(query.shape[:3], dtype=lse_dtype(query))
        for part in tree.parts:
            part_out, part_lse = kernel.forward(part.take(query), part.take(key), part.take(value), True, scale)
            part.put(out, part_out)
            part.put(lse, part_lse)
        for node in tree.shared:
            own, below = slice(node.start, node.end), slice(node.end, node.below)
            part_out, part_lse = kernel.forward(query[:, :, below], key[:, :, own], value[:, :, own], False, scale)
            merge(out[:, :, below], lse[:, :, below], part_out, part_lse)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.tree, ctx.scale, ctx.kernel = tree, scale, kernel
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        kernel: Kernel = ctx.kernel
        d_out, d_query, d_key, d_value = grads[0], *(torch.empty_like(states) for states in (query, key, value))
        for part in ctx.tree.parts:
            q, k, v, o, log_sum = (part.take(states) for states in (query, key, value, out, lse))
            found = kernel.backward(part.take_gradient(d_out), q, k, v, o, log_sum, True, ctx.scale)
            for states, gradient in zip((d_query, d_key, d_value), found, strict=True):
                part.put(states, gradient)
        for node in ctx.tree.shared:
            own, below = slice(node.start, node.end), slice(node.end, node.below)
            d_q, d_k, d_v = kernel.backward(
                d_out[:, :, below],
                query[:, :, below],
                key[:, :, own],
                value[:, :, own],
                out[:, :, below],
                lse[:, :, below],
                False,
                ctx.scale,
            )
            d_query[:, :, below] += d_q
            d_key[:, :, own] += d_k
            d_value[:, :, own] += d_v
        return d_query, d_key, d_value, None, None


def merge(out: Tensor, lse: Tensor, part_out: Tensor, part_lse: Tensor) -> None:
    """Add attention to further keys, in place: (B, H, Q, D) outputs and (B, H, Q) log-sum-exps."""
    total = torch.logaddexp(lse, part_lse)
    out.copy_(out * (lse - total).exp()[..., None] + part_out * (part_lse - total).exp()[..., None])
    lse.copy_(total)
