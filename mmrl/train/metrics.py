"""What is measured on scored groups, by the same names in training, validation and evaluation; and how far the rollout
engine's log-probs are from the trainer's.

Shapes: N targets of a step, flat in row order.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from mmrl.train.rows import TurnTargets
from mmrl.types import Group, ScoreKind, StopReason, Trajectory

LAGGED_STEPS = 5
"""Steps with lagging rollouts from which it is known how wide a gap is usual."""
LAGGED_FACTOR = 3.0
"""Times their median, beyond which a gap is not usual any more."""


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


def gap_metrics(gap_N: np.ndarray, turns: Sequence[TurnTargets]) -> dict[str, float]:
    """Size of the gap over all targets, those behind each kind of medium, and those of each turn.

    Also engine_gap/kl, the k3 estimate of KL(engine || trainer) (http://joschu.net/blog/kl-approx.html).

    Args:
        gap_N: the trainer's log-probs at the start of the step, minus the engine's.
    """
    size_N, capped_N = np.abs(gap_N), np.minimum(gap_N, 20.0)
    metrics = {
        "engine_gap/mean": float(size_N.mean()),
        "engine_gap/max": float(size_N.max()),
        "engine_gap/kl": float((np.expm1(capped_N) - capped_N).mean()),
    }
    labels = [{*turn.kinds, f"turn_{turn.turn}"} for turn in turns]
    lengths = [turn.length for turn in turns]
    for label in sorted(set().union(*labels)):
        part_N = size_N[np.repeat([label in own for own in labels], lengths)]
        metrics |= {f"engine_gap/{label}/mean": float(part_N.mean()), f"engine_gap/{label}/max": float(part_N.max())}
    return metrics


def lagged_bound(limit: float, earlier: Sequence[float]) -> tuple[float, str]:
    """(bound of the mean gap, its name) where rollouts lag: the updates since are a part of the gap.

    Args:
        limit: max_engine_gap.
        earlier: mean gaps of the steps before whose rollouts lagged too.
    """
    if len(earlier) < LAGGED_STEPS:
        return math.inf, f"the bound of the first {LAGGED_STEPS} steps whose rollouts lag"
    usual = LAGGED_FACTOR * float(np.median(earlier))
    return max((limit, "max_engine_gap"), (usual, f"{LAGGED_FACTOR:g} times the median of the steps before"))


def gap_warning(metrics: Mapping[str, float], bound: float, name: str = "max_engine_gap") -> str | None:
    """What to say of a mean gap above the bound of this name."""
    gap = metrics["engine_gap/mean"]
    if gap <= bound:
        return None
    means = {name.split("/")[1]: metrics[name] for name in metrics if re.fullmatch("engine_gap/.+/mean", name)}
    turns = {label for label in means if label.startswith("turn_")}
    kind, turn = (max(sorted(labels), key=means.__getitem__) for labels in (means.keys() - turns, turns))
    return (
        f"the rollout engine's log-probs are {gap:.3g} off the trainer's on average ({name} is {bound:g}), "
        f"most behind {kind} ({means[kind]:.3g}) and in {turn.replace('_', ' ')} ({means[turn]:.3g}). Where one kind "
        "of medium stands out, compare how each is given it; otherwise compare their dtype, temperature and weights "
        "(policy_lag)"
    )


def engine_failures(groups: Sequence[Group]) -> str | None:
    """How many rollouts the engine failed, and in which words first."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    failed = [trajectory for trajectory in trajectories if trajectory.stop is StopReason.ENGINE_ERROR]
    if not failed:
        return None
    words = failed[0].turns[-1].error
    return f"the engine failed {len(failed)} of {len(trajectories)} rollouts, which are left out: {words}"


def policy_lag(turns: Sequence[TurnTargets], version: int) -> dict[str, float]:
    """Mean over targets of the updates between the policy that wrote them and `version`."""
    lags = [(version - turn.version, turn.length) for turn in turns if turn.version is not None]
    count = sum(length for _, length in lags)
    return {"policy_lag": sum(lag * length for lag, length in lags) / count} if lags else {}


def mean(values: Sequence[float | bool]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
