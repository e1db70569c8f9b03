"""Rollouts and evaluations of a checkpoint, apart from any training run: `mmrl rollout` and `mmrl eval`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from mmrl.config import EvaluateSection, RowsFile, RunConfig, dump_config
from mmrl.data.dataset import RowSource
from mmrl.errors import ConfigError
from mmrl.report.progress import Progress
from mmrl.report.store import RunStore, write_atomic
from mmrl.rollout.episode import Sampling
from mmrl.scaling.named import build_strategies
from mmrl.train.claim import write_manifest
from mmrl.train.evaluate import Shown, evaluate, evaluate_strategies, summary
from mmrl.train.session import Session, open_session
from mmrl.types import Group


def rollout(
    config: RunConfig,
    *,
    checkpoint: Path | None,
    rows: str | None,
    limit: int,
    group_size: int,
    temperature: float,
) -> Path:
    """Play the first `limit` rows; returns the directory of the rollouts, beside that of the run."""
    source = rows or _held_out(config)
    with _session(config, "rollout", checkpoint) as (session, store, progress):
        dataset = session.dataset(source, limit)
        prompts = [session.prompt(dataset, index) for index in range(len(dataset))]
        usable = [prompt for prompt in prompts if prompt]
        sampling = Sampling(temperature=temperature, seed=session.seed("rollout"))
        for group in session.play(usable, group_size=group_size, sampling=sampling):
            store.log_group("rollout", 0, "rollout", group, session.checkpoint.family.decode)
            for line in describe(group):
                progress.print(line)
    return store.path


def evaluate_checkpoint(config: RunConfig, *, checkpoint: Path | None, strategies: Sequence[str] = ()) -> Path:
    """Measure a checkpoint as the end of a run does; returns the directory of the result, beside that of the run.

    Args:
        strategies: names of test-time strategies; where there are any, these alone are measured.
    """
    rows = _held_out(config)
    section = config.evaluate
    assert section is not None
    test_time = build_strategies(section.test_time, strategies)
    result: dict[str, Any] = {}
    with _session(config, "eval", checkpoint) as (session, store, progress):
        dataset = session.dataset(rows, section.limit)
        if not strategies:
            result = _greedy(session, dataset, section, store, progress)
        if test_time:
            result["test_time"] = evaluate_strategies(session, dataset, test_time, progress, store)
        write_atomic(store.path / "summary.json", json.dumps(result, indent=1) + "\n")
    return store.path


def _greedy(
    session: Session, dataset: RowSource, section: EvaluateSection, store: RunStore, progress: Progress
) -> dict[str, Any]:
    config, results = session.config, {}
    for part in ("tools", "no_tools") if section.without_tools else ("tools",):
        shown = Shown(progress, f"evaluation {part}", len(dataset), keep=config.report.trajectories // 2)
        results[part] = evaluate(session, dataset, use_tools=part == "tools", on_group=shown)
        store.write_groups(part, shown.first, session.checkpoint.family.decode)
    return summary(results, [reward.name for reward in config.rewards])


def describe(group: Group) -> Iterator[str]:
    """A line per trajectory: what was asked, done, answered and earned."""
    for trajectory in group.trajectories:
        steps = [call.name for turn in trajectory.turns for call in turn.calls]
        scores = "  ".join(f"{name} {score.value:.2f}" for name, score in trajectory.scores.items())
        route = " > ".join([*steps, f"{trajectory.answer or trajectory.stop.value!r}"])
        yield f"{trajectory.sample_id}.{trajectory.index}  {route}  (gold {group.sample.gold.answer!r})  {scores}"


def _held_out(config: RunConfig) -> str | tuple[RowsFile, ...]:
    if config.evaluate is None:
        raise ConfigError("evaluate: the configuration names no held-out rows; add evaluate.rows")
    return config.evaluate.rows


@contextmanager
def _session(config: RunConfig, kind: str, checkpoint: Path | None) -> Iterator[tuple[Session, RunStore, Progress]]:
    """Everything opened, in a directory of its own that is emptied first."""
    folder = model_folder(checkpoint, "--checkpoint")
    config = config.model_copy(update={"name": f"{config.name}-{kind}"})
    store = RunStore(config.run_dir)
    try:
        store.clear()
        write_atomic(store.path / "config.yaml", dump_config(config))
        with Progress() as progress:
            progress.print(f"model: {folder or config.model_path}")
            session = open_session(config, model_path=folder, tell=progress.print)
            with closing(session.runner.engine):
                yield session, store, progress
            write_manifest(store, session.decoders())
    finally:
        store.close()


def model_folder(checkpoint: Path | None, option: str) -> Path | None:
    """The folder that transformers loads; a run's checkpoint holds it as `model`. `option` is named in errors."""
    if checkpoint is None:
        return None
    if not checkpoint.is_dir():
        raise ConfigError(f"{option}: no folder {checkpoint}")
    return checkpoint / "model" if (checkpoint / "model").is_dir() else checkpoint
