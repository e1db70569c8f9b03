"""Random numbers by name: a stream depends on what it is for, never on the order in which things happen."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed for the thing that `parts` name, e.g. derive_seed(run_seed, "grpo", step, row, sibling, turn)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def uniforms(seed: int, count: int) -> np.ndarray:
    """`count` float64 numbers in [0, 1)."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)
