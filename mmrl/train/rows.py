"""Trajectories to the rows that the trainer computes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnTargets:
    """Targets that were written in one turn: what was there when they were."""

    length: int
    """Targets."""
    turn: int
    """From 1."""
    kinds: frozenset[str]
    """Kinds of media before them in the trajectory; "text" where there was none."""
    version: int | None
    """Policy version that wrote them."""


def written_turns(trajectories: Sequence[Trajectory]) -> list[TurnTargets]:
    """Every turn that has targets, in row order."""
    turns: list[TurnTargets] = []
    for trajectory in trajectories:
        number, kinds = 0, frozenset[str]()
        for segment in trajectory.segments:
            kinds |= {trajectory.media[span.key].kind for span in segment.spans}
            number += segment.source is Source.MODEL
            if segment.source is Source.MODEL and segment.ids:
                seen = kinds or frozenset({"text"})
                turns.append(TurnTargets(length=len(segment.ids), turn=number, kinds=seen, version=segment.version))
    return turns


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
