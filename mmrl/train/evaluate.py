"""Held-out rows, played greedily or by test-time strategies, and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from mmrl.data.dataset import RowSource
from mmrl.data.prefetch import Prefetcher
from mmrl.report.progress import Progress
from mmrl.report.store import RunStore
from mmrl.rollout.episode import Sampling
from mmrl.scaling.measure import ShownStrategies, measure_strategies
from mmrl.scaling.strategy import Strategy
from mmrl.train.metrics import group_metrics
from mmrl.train.session import Session
from mmrl.types import Group


def evaluate(
    session: Session,
    dataset: RowSource,
    *,
    use_tools: bool = True,
    on_group: Callable[[Group], None] = lambda group: None,
) -> dict[str, float]:
    """Metrics of one greedy rollout of every usable row, and their number as "rows"."""
    groups: list[Group] = []
    size = session.config.rollout.batch_size
    rows = range(len(dataset))
    with closing(Prefetcher(session.media)) as ahead:
        for start in rows[::size]:
            end = start + size
            prompts = [session.prompt(dataset, index, use_tools=use_tools) for index in rows[start:end]]
            usable = [prompt for prompt in prompts if prompt]
            coming = rows[end : end + size * session.config.data.prefetch_steps]
            ahead.start(ref for index in coming for ref in dataset.refs(index))
            sampling = Sampling(temperature=0.0, seed=session.seed("evaluate", start))
            played = session.play(usable, group_size=1, sampling=sampling, on_group=on_group)
            groups += [_without_media(group) for group in played]
    return {"rows": float(len(groups)), **group_metrics(groups)}


def evaluate_strategies(
    session: Session, dataset: RowSource, strategies: Mapping[str, Strategy], progress: Progress, store: RunStore
) -> dict[str, dict[str, float]]:
    """Accuracy and cost of each strategy on the same rows, as summary.json holds them under "test_time".

    The rungs of the first rows are written to rollouts/strategy_<name>.jsonl.
    """
    keep = session.config.report.trajectories // 10
    shown = ShownStrategies(progress, len(dataset), keep=keep)
    results = measure_strategies(session, dataset, strategies, shown, keep=keep)
    shown.write(store, session.checkpoint.family.decode)
    return results


class Shown:
    """Told of every group: shows how many are done, and keeps the first ones for the report."""

    def __init__(self, progress: Progress, title: str, total: int, *, keep: int) -> None:
        self.progress, self.keep = progress, keep
        self.count = 0
        self.first: list[Group] = []
        progress.stage(title, total)

    def __call__(self, group: Group) -> None:
        self.count += 1
        if len(self.first) < self.keep:
            self.first.append(group)
        self.progress.update(self.count)


def headline(metrics: Mapping[str, float], rewards: Sequence[str]) -> dict[str, float]:
    """What a summary shows of an evaluation: the mean of each reward by name, and the share that called a tool."""
    scores = {name: metrics[f"score/{name}"] for name in rewards if f"score/{name}" in metrics}
    return {**scores, "tool_calls": metrics["tool_calls"]}


def summary(evaluations: Mapping[str, Mapping[str, float]], rewards: Sequence[str]) -> dict[str, Any]:
    """Evaluations by name, as summary.json holds them. Without tools only the first reward says something."""
    parts = {name: headline(metrics, rewards) for name, metrics in evaluations.items()}
    if "no_tools" in parts:
        parts["no_tools"] = {rewards[0]: parts["no_tools"][rewards[0]]}
    rows = int(next(iter(evaluations.values()))["rows"])
    return {"rows": rows, **parts}


def _without_media(group: Group) -> Group:
    """Pixels of thousands of rows need not be held to count what happened."""
    return replace(group, trajectories=tuple(replace(t, media={}) for t in group.trajectories))
