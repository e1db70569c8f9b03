"""What is measured on scored groups; the same names in training, validation and evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmrl.types import Group, ScoreKind, StopReason, Trajectory


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Means over trajectories. Scores of each reward: mean over applicable ones; errors and flags are counted."""
    trajectories = [t for group in groups for t in group.trajectories]
    if not trajectories:
        return {}
    metrics = {
        "reward": mean([t.reward.value for t in trajectories if t.reward.kind is ScoreKind.VALUE]),
        "tool_calls": mean([any(turn.calls for turn in t.turns) for t in trajectories]),
        "tool_errors": mean([any(turn.error for turn in t.turns) for t in trajectories]),
        "turns": mean([len(t.turns) for t in trajectories]),
        "response_tokens": mean([t.num_model_tokens for t in trajectories]),
    }
    for name in trajectories[0].scores:
        metrics |= _score_metrics(name, trajectories)
    stops = Counter(t.stop for t in trajectories)
    metrics |= {f"stop/{stop.value}": stops[stop] / len(trajectories) for stop in StopReason if stops[stop]}
    return metrics


def _score_metrics(name: str, trajectories: Sequence[Trajectory]) -> dict[str, float]:
    scores = [t.scores[name] for t in trajectories]
    metrics = {f"score/{name}": mean([score.value for score in scores if score.kind is ScoreKind.VALUE])}
    errors = sum(score.kind is ScoreKind.ERROR for score in scores)
    metrics |= {f"score_errors/{name}": float(errors)} if errors else {}
    flags = Counter(score.flag for score in scores if score.flag)
    return metrics | {f"score_flags/{name}/{flag}": float(flags[flag]) for flag in sorted(flags)}


def mean(values: Sequence[float | bool]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
