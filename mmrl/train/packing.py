"""Rows that begin alike are packed into one sequence in which every shared beginning stands once.

Rows are sorted by their tokens, so that those that share most are neighbours. Whatever rows have in common counts: the
prompt of a group, first turns that several siblings wrote alike, a system prompt of different rows. Two tokens are the
same where id, medium, place in the medium and position are, for then all that came before gives them one state.

Shapes: T packed tokens, N targets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmrl.attention.tree import Node
from mmrl.train.rows import micro_batches
from mmrl.types import MediaSpan, Row

MIN_SHARED = 8
"""Tokens that rows must share beyond what they share already, to be worth a node of the tree."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """Rows as one sequence, with a forest of nodes."""

    ids_T: np.ndarray
    positions_3T: np.ndarray
    spans: tuple[MediaSpan, ...]
    nodes: tuple[Node, ...]
    source_N: np.ndarray
    """Index into T of the state that predicts each target; flat, in the order of the rows as given."""
    target_N: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Arranged:
    """Rows sorted by their tokens."""

    keys: list[np.ndarray]
    """Of each row, as given."""
    order: list[int]
    shared: list[int]
    """Tokens that each row, in that order, shares with the one before it."""

    def length(self, place: int) -> int:
        return len(self.keys[self.order[place]])

    def num_tokens(self, batch: range) -> int:
        """Of the rows at these places, shared ones once."""
        return sum(map(self.length, batch)) - sum(self.shared[i] for i in batch[1:])


def arrange(rows: Sequence[Row]) -> Arranged:
    keys = [row_key(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: keys[i].tobytes())
    pairs = zip(order, order[1:], strict=False)
    shared = [
        min(common_prefix(keys[a], keys[b]), common_prefix(rows[a].positions_3T.T, rows[b].positions_3T.T))
        for a, b in pairs
    ]
    return Arranged(keys, order, [0, *shared])


def pack(rows: Sequence[Row]) -> Packed:
    """One sequence of all `rows`, each up to the last state that predicts something."""
    packing = _Packing(rows, arrange(rows))
    packing.grow(0, len(rows), 0)
    return packing.result()


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that one forward computes."""

    rows: tuple[int, ...]
    """Indices into the rows of the step."""
    packed: bool
    """As one sequence with shared beginnings, or each by itself, padded."""


def plan(rows: Sequence[Row], max_tokens: int, *, sharing: bool) -> list[MicroBatch]:
    """The step's micro-batches, in whichever form costs less.

    Args:
        sharing: False: never packed.
    """
    padded = micro_batches(rows, max_tokens)
    if not sharing or not rows:
        return [MicroBatch(tuple(batch), packed=False) for batch in padded]
    arranged = arrange(rows)
    batches = even_batches(arranged, max_tokens)
    apart = sum(len(batch) * max(len(rows[i].ids_T) for i in batch) for batch in padded)
    if apart <= sum(map(arranged.num_tokens, batches)):
        return [MicroBatch(tuple(batch), packed=False) for batch in padded]
    return [MicroBatch(tuple(arranged.order[i] for i in batch), packed=True) for batch in batches]


def even_batches(arranged: Arranged, max_tokens: int) -> list[range]:
    """As few batches as `shared_batches` makes, and no more tokens in all, with the largest as small as can be."""
    best = shared_batches(arranged, max_tokens)
    tokens = sum(map(arranged.num_tokens, best))
    low, high = 1, max_tokens
    while low < high:
        limit = (low + high) // 2
        found = shared_batches(arranged, limit)
        if len(found) <= len(best) and sum(map(arranged.num_tokens, found)) <= tokens:
            best, high = found, limit
        else:
            low = limit + 1
    return best


def shared_batches(arranged: Arranged, max_tokens: int) -> list[range]:
    """Batches, as places in the order, of up to `max_tokens` packed tokens.

    A row of more goes alone, but for siblings that share half of it: they come along up to twice its length. A batch
    ends where its rows have least in common with the next, so that groups stay whole where they can: a beginning that
    lies in two batches is computed twice.
    """
    shared = arranged.shared
    batches, start, total, longest, common, i = [], 0, 0, 0, 0, 0
    while i < len(shared):
        length = arranged.length(i)
        new = length if i == start else length - shared[i]
        longest = max(longest, length)
        common = length if i == start else min(common, shared[i])
        limit = max(max_tokens, 2 * longest) if 2 * common >= longest else max_tokens
        if i > start and total + new > limit:
            end = min(range(start + 1, i + 1), key=lambda j: (shared[j], -j))
            batches.append(range(start, end))
            start, total, longest, i = end, 0, 0, end
        else:
            total, i = total + new, i + 1
    return [*batches, range(start, len(shared))]


class _Packing:
    """Lays rows out, beginning by beginning."""

    def __init__(self, rows: Sequence[Row], arranged: Arranged) -> None:
        self.rows, self.keys, self.order, self.shared = rows, arranged.keys, arranged.order, arranged.shared
        self.place = [np.empty(len(key), dtype=np.int64) for key in self.keys]
        """Where each row's tokens stand in the packed sequence."""
        self.nodes: list[Node] = []
        self.pieces: list[tuple[int, int, int]] = []
        """(row, first, last + 1) of the tokens of each node."""
        self.length = 0

    def grow(self, first: int, last: int, depth: int) -> None:
        """Lay out the rows first to last - 1 of the order, which stand already up to their token `depth`."""
        for lo, hi in self._families(first, last, depth):
            end = min(self.shared[lo + 1 : hi], default=len(self.keys[self.order[lo]]))
            number = self._add_node(lo, hi, depth, end)
            if hi - lo > 1:
                self.grow(lo, hi, end)
            if number is not None:
                self.nodes[number] = replace(self.nodes[number], below=self.length)

    def _families(self, first: int, last: int, depth: int) -> Iterator[tuple[int, int]]:
        """Runs of rows that share enough beyond `depth`."""
        cuts = [i for i in range(first + 1, last) if self.shared[i] < depth + MIN_SHARED]
        return zip([first, *cuts], [*cuts, last], strict=True)

    def _add_node(self, lo: int, hi: int, depth: int, end: int) -> int | None:
        """A node of the tokens depth to end - 1 of the rows lo to hi - 1; none for a row without more of its own."""
        if end <= depth:
            return None
        start = self.length
        self.length += end - depth
        for row in self.order[lo:hi]:
            self.place[row][depth:end] = np.arange(start, self.length)
        self.nodes.append(Node(start, self.length, self.length))
        self.pieces.append((self.order[lo], depth, end))
        return len(self.nodes) - 1

    def result(self) -> Packed:
        return Packed(
            ids_T=np.concatenate([self.rows[row].ids_T[a:b] for row, a, b in self.pieces]),
            positions_3T=np.concatenate([self.rows[row].positions_3T[:, a:b] for row, a, b in self.pieces], axis=1),
            spans=tuple(self._spans()),
            nodes=tuple(self.nodes),
            source_N=np.concatenate([place[row.source_N] for row, place in zip(self.rows, self.place, strict=True)]),
            target_N=np.concatenate([row.target_N for row in self.rows]),
        )

    def _spans(self) -> Iterator[MediaSpan]:
        for node, (row, first, last) in zip(self.nodes, self.pieces, strict=True):
            for span in self.rows[row].spans:
                if first <= span.start < last:
                    yield replace(span, start=span.start - first + node.start)


def row_key(row: Row) -> np.ndarray:
    """(T,) big-endian numbers that say what each token is, up to the last state that predicts something.

    As bytes they sort as the tokens do.
    """
    key = row.ids_T.astype(np.uint64)
    for span in row.spans:
        key[span.start : span.start + span.length] = _span_key(span) + np.arange(span.length, dtype=np.uint64)
    return key[: row.source_N.max(initial=-1) + 1].astype(">u8")


def _span_key(span: MediaSpan) -> np.uint64:
    """Of a span's first token: far above any id, and another for every medium and way to place it.

    Rows that share a token of a medium therefore share all of it: no beginning ends inside one.
    """
    what = repr((span.key, span.length, span.grid, span.offset, span.step, span.joined))
    digest = hashlib.blake2b(what.encode(), digest_size=7).digest()
    return np.uint64((1 << 63) + int.from_bytes(digest, "big"))


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many first entries are equal."""
    length = min(len(a), len(b))
    differ = (a[:length] != b[:length]).reshape(length, -1).any(1)
    return int(differ.argmax()) if differ.any() else length
