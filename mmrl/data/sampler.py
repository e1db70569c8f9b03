"""The order in which rows are drawn: a seeded permutation per epoch of each file, and one position in it all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np


class Sampler:
    """Draws every row of a file once an epoch of that file. Its whole state is one number, so a run resumes exactly.

    With several files, draw n (from 0) goes to the file that is furthest behind its share: the first one with the
    greatest W_i * (n + 1) - W * c_i, where W_i are the weights as whole numbers in lowest terms, W is their sum and c_i
    counts the draws of file i so far. After every W draws each file was drawn exactly W_i times.

    Args:
        num_rows: rows of the file, or of each file; a drawn index counts through the files in order.
        weights: shares of the files, in any unit; by default equal.
    """

    def __init__(self, num_rows: int | Sequence[int], seed: int, weights: Sequence[float] | None = None) -> None:
        self.sizes = [num_rows] if isinstance(num_rows, int) else list(num_rows)
        self.num_rows, self.seed = sum(self.sizes), seed
        self.weights = whole_weights(weights or [1] * len(self.sizes))
        self.position = 0
        """Rows drawn since the start."""
        self._at, self._counts = 0, [0] * len(self.sizes)
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def draw(self) -> int:
        """Index of the next row."""
        if self._at != self.position:
            self._seek()
        file = self._next_file()
        epoch, place = divmod(self._counts[file], self.sizes[file])
        self._counts[file] += 1
        self._at += 1
        self.position += 1
        return sum(self.sizes[:file]) + int(self._order(file, epoch)[place])

    def peek(self, count: int) -> list[int]:
        """Indices of the next `count` rows, which stay to be drawn."""
        before = self.position, self._at, list(self._counts)
        indices = [self.draw() for _ in range(count)]
        self.position, self._at, self._counts = before
        return indices

    def _next_file(self) -> int:
        total = sum(self.weights)
        behind = [w * (self._at + 1) - total * c for w, c in zip(self.weights, self._counts, strict=True)]
        return behind.index(max(behind))

    def _seek(self) -> None:
        """Bring the counts to `position`: they repeat with the sum of the weights."""
        rounds, rest = divmod(self.position, sum(self.weights))
        self._at = self.position - rest
        self._counts = [weight * rounds for weight in self.weights]
        for _ in range(rest):
            self._counts[self._next_file()] += 1
            self._at += 1

    def _order(self, file: int, epoch: int) -> np.ndarray:
        if self._orders.get(file, (-1,))[0] != epoch:
            name = [self.seed, epoch, file] if file else [self.seed, epoch]
            self._orders[file] = epoch, np.random.default_rng(name).permutation(self.sizes[file])
        return self._orders[file][1]


def whole_weights(weights: Sequence[float]) -> list[int]:
    """The same proportions as whole numbers in lowest terms; a weight counts as it is written (0.1 is a tenth)."""
    exact = [Fraction(str(weight)) for weight in weights]
    common = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * common) for weight in exact]
    return [number // math.gcd(*whole) for number in whole]
