"""Scores a group by its rewards and combines them; a reward that fails is an error, never a zero."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mmrl.protocols import Reward, RewardContext
from mmrl.types import Group, Sample, Score, ScoreKind, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedReward:
    name: str
    reward: Reward
    weight: Callable[[int], float]
    """Weight at an optimiser step."""


def score_each(group: Group, score: Callable[[Trajectory, Sample], Score]) -> list[Score]:
    """Lift a function of one trajectory to its group."""
    return [score(trajectory, group.sample) for trajectory in group.trajectories]


async def score_group(group: Group, rewards: Sequence[WeightedReward], context: RewardContext) -> Group:
    """The group with every trajectory's `scores` and combined `reward`."""
    async with asyncio.TaskGroup() as tasks:  # a reward that waits, for a judge or a process, holds up no other
        running = {term.name: tasks.create_task(_column(term, group, context)) for term in rewards}
    columns = {name: task.result() for name, task in running.items()}
    weights = {term.name: term.weight(context.step) for term in rewards}
    scored = []
    for number, trajectory in enumerate(group.trajectories):
        scores = {name: column[number] for name, column in columns.items()}
        scored.append(replace(trajectory, scores=scores, reward=combine(scores, weights)))
    return replace(group, trajectories=tuple(scored))


def combine(scores: Mapping[str, Score], weights: Mapping[str, float]) -> Score:
    """Weighted sum of the applicable scores; an error in any of them is an error of the whole."""
    for name, score in scores.items():
        if score.kind is ScoreKind.ERROR:
            return Score.error(f"{name}: {score.reason}")
    applicable = {name: score.value for name, score in scores.items() if score.kind is ScoreKind.VALUE}
    if not applicable:
        return Score.not_applicable("no reward applies to this row")
    return Score.of(sum(weights[name] * value for name, value in applicable.items()))


async def _column(term: WeightedReward, group: Group, context: RewardContext) -> list[Score]:
    try:
        scores = await term.reward.score(group, context)
    except Exception as error:  # a user's reward may raise anything; it must not end the run, nor pass as a 0
        return _all_errors(group, f"{type(error).__name__}: {error}")
    if not isinstance(scores, list) or len(scores) != len(group.trajectories):
        return _all_errors(group, f"must return a list of {len(group.trajectories)} Scores, got {scores!r:.200}")
    return [_checked(score) for score in scores]


def _all_errors(group: Group, reason: str) -> list[Score]:
    return [Score.error(reason)] * len(group.trajectories)


def _checked(score: object) -> Score:
    if not isinstance(score, Score):
        return Score.error(f"must be a Score, got {score!r:.200}")
    if score.kind is ScoreKind.VALUE and not isinstance(score.value, (int, float)):
        return Score.error(f"value must be a number, got {score.value!r:.200}")
    if score.kind is ScoreKind.VALUE and not math.isfinite(score.value):
        return Score.error(f"value is {score.value}")
    return score
