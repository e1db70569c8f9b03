"""A reward that depends on nothing but the ids that were written: the siblings of a group differ in it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrl.protocols import RewardContext
from mmrl.scoring import score_each
from mmrl.types import Group, Sample, Score, Source, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Checksum:
    async def score(self, group: Group, context: RewardContext) -> list[Score]:
        return score_each(group, self._score)

    def _score(self, trajectory: Trajectory, sample: Sample) -> Score:
        return Score.of(checksum(i for s in trajectory.segments if s.source is Source.MODEL for i in s.ids))


def checksum_reward(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """The same, as TRL calls a reward."""
    return [checksum(ids) for ids in completion_ids]


def checksum(ids: Iterable[int]) -> float:
    """A number in [0, 1)."""
    return zlib.crc32(np.array(list(ids), dtype=np.int64).tobytes()) / 2**32
