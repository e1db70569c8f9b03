"""The order in which rows are drawn: a seeded permutation per epoch, and a position in it."""

from __future__ import annotations

import numpy as np


class Sampler:
    """Draws every row once an epoch. Its whole state is one number, so a resumed run goes on exactly."""

    def __init__(self, num_rows: int, seed: int) -> None:
        self.num_rows, self.seed = num_rows, seed
        self.position = 0
        """Rows drawn since the start."""
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def draw(self) -> int:
        """Index of the next row."""
        epoch, place = divmod(self.position, self.num_rows)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
        self.position += 1
        return int(self._order[place])
