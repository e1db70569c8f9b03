"""Trajectories to the rows that the trainer computes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmrl.protocols import ModelFamily
from mmrl.types import MediaSpan, Row, Source, Tokens, Trajectory


def build_row(trajectory: Trajectory, family: ModelFamily) -> Row:
    """One row: the whole trajectory, with a target for every id that the model wrote."""
    ids: list[int] = []
    spans: list[MediaSpan] = []
    targets: list[int] = []
    for segment in trajectory.segments:
        start = len(ids)
        ids += segment.ids
        spans += [replace(span, start=span.start + start) for span in segment.spans]
        if segment.source is Source.MODEL:
            targets += range(start, len(ids))
    target_N = np.array(targets, dtype=np.int64)
    ids_T = np.array(ids, dtype=np.int64)
    return Row(
        ids_T=ids_T,
        positions_3T=family.positions(Tokens(ids=tuple(ids), spans=tuple(spans))),
        spans=tuple(spans),
        source_N=target_N - 1,
        target_N=ids_T[target_N],
    )


def sampled_logprobs(trajectories: Sequence[Trajectory]) -> np.ndarray:
    """(N,) log-probs of the engine that sampled them, flat in row order."""
    values = [value for t in trajectories for s in t.segments if s.source is Source.MODEL for value in s.logprobs]
    return np.array(values, dtype=np.float64)


def micro_batches(rows: Sequence[Row], max_tokens: int) -> list[list[int]]:
    """Indices of `rows` in batches whose padded size stays within `max_tokens`; a longer row goes alone."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids_T), i))
    batches: list[list[int]] = []
    for index in order:
        longest = len(rows[index].ids_T)
        if batches and (len(batches[-1]) + 1) * longest <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
