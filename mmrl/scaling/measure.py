"""Accuracy against cost: several strategies on the same rows, with the same random numbers for the same looks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from mmrl.cache.media import MediaLoader
from mmrl.data.dataset import RowSource
from mmrl.report.progress import Progress
from mmrl.report.store import Decode, RunStore
from mmrl.rollout.episode import Prompt
from mmrl.scaling.closer import closer
from mmrl.scaling.run import Outcome, Solver
from mmrl.scaling.strategy import Fields, Strategy
from mmrl.scaling.votes import tally
from mmrl.train.metrics import mean
from mmrl.types import Group, ScoreKind

if TYPE_CHECKING:
    from mmrl.train.session import Session

MAX_NAME = 100
"""Characters of a strategy's name in that of a file."""


def measure_strategies(
    session: Session,
    dataset: RowSource,
    strategies: Mapping[str, Strategy],
    on_outcome: Callable[[str, Outcome], None] = lambda name, outcome: None,
    *,
    keep: int = 0,
) -> dict[str, dict[str, float]]:
    """What each strategy reaches and costs, as summary.json holds it under "test_time".

    "accuracy" is the mean of the run's first reward, of the trajectory whose answer is taken. Costs are means of a
    row: "frames" and "tokens" are those shown, summed over rungs and samples; "rungs" those played; "encoded" counts
    the images and moments of videos that went through the tower, which had seen none when the strategy began.

    Args:
        on_outcome: is told of each row that is decided, with the strategy's name.
        keep: rows, from the first, whose outcomes keep their media.
    """
    return {
        name: _measure(session, dataset, strategy, partial(on_outcome, name), keep)
        for name, strategy in strategies.items()
    }


def _measure(
    session: Session, dataset: RowSource, strategy: Strategy, on_outcome: Callable[[Outcome], None], keep: int
) -> dict[str, float]:
    features = session.runner.engine.features
    features.clear()
    before = features.encoded

    def ready(number: int, fields: Fields) -> Prompt | None:
        media = MediaLoader(closer(session.media.processors, fields), session.media.cache)
        return session.prompt(dataset, number, media=media)

    solver = Solver(
        runner=session.runner,
        ready=ready,
        seed=session.seed("test_time"),
        batch_size=session.config.rollout.batch_size,
        keep=keep,
        rewards=session.rewards[:1],
    )
    outcomes = solver.solve(len(dataset), strategy, on_outcome)
    scores = [score for outcome in outcomes for score in outcome.winner.scores.values()]
    values = [score.value for score in scores if score.kind is ScoreKind.VALUE]
    return ({"accuracy": mean(values)} if values else {}) | {
        "frames": mean([outcome.frames for outcome in outcomes]),
        "tokens": mean([outcome.tokens for outcome in outcomes]),
        "rungs": mean([len(outcome.rounds) for outcome in outcomes]),
        "encoded": (features.encoded - before) / max(1, len(outcomes)),
    }


class ShownStrategies:
    """Told of every decided row: shows how many are, and keeps the first rows of each strategy for the report.

    Args:
        total: rows of each strategy.
        keep: rows that are kept; as in `measure_strategies`.
    """

    def __init__(self, progress: Progress, total: int, *, keep: int) -> None:
        self.progress, self.total, self.keep = progress, total, keep
        self.count: dict[str, int] = {}
        self.first: dict[str, list[Outcome]] = {}

    def __call__(self, name: str, outcome: Outcome) -> None:
        if name not in self.count:
            self.progress.stage(f"strategy {name}", self.total)
            self.count[name], self.first[name] = 0, []
        self.count[name] += 1
        self.progress.update(self.count[name])
        if outcome.number < self.keep:
            self.first[name].append(outcome)

    def write(self, store: RunStore, decode: Decode) -> None:
        """A file of rollouts for each strategy, by rung."""
        files = file_names(self.first)
        for name, outcomes in self.first.items():
            ordered = sorted(outcomes, key=lambda outcome: outcome.number)
            shown = [rung for outcome in ordered for rung in rungs(outcome)]
            groups, facts = [group for group, _ in shown], [fact for _, fact in shown]
            store.write_groups(f"strategy_{files[name]}", groups, decode, facts)


def file_names(names: Iterable[str]) -> dict[str, str]:
    """A part of a file's name for each strategy: that may be named by a path."""
    files: dict[str, str] = {}
    for number, name in enumerate(names):
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-MAX_NAME:]
        files[name] = f"{plain}_{number}" if plain in files.values() else plain
    return files


def rungs(outcome: Outcome) -> list[tuple[Group, dict[str, Any]]]:
    """(trajectories, what a report says of the rung) of each rung, in order."""
    return [
        (
            Group(sample=outcome.sample, trajectories=played.trajectories),
            {
                "number": number,
                "title": played.look.title,
                "accepted": number == len(outcome.rounds),
                "votes": tally(played.trajectories),
                "frames": played.frames,
                "tokens": played.tokens,
            },
        )
        for number, played in enumerate(outcome.rounds, start=1)
    ]
