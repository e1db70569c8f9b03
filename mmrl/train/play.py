"""Rollouts and evaluations of a checkpoint, apart from any training run: `mmrl rollout` and `mmrl eval`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmrl.config import RunConfig, dump_config
from mmrl.errors import ConfigError
from mmrl.report.progress import Progress
from mmrl.report.store import RunStore, write_atomic
from mmrl.rollout.episode import Sampling
from mmrl.train.evaluate import Shown, evaluate, summary
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
    rows = rows or _held_out(config)
    with _session(config, "rollout", checkpoint) as (session, store, progress):
        dataset = session.dataset(rows, limit)
        loaded = [row for row in map(dataset.load, range(len(dataset))) if row]
        sampling = Sampling(temperature=temperature, seed=session.seed("rollout"))
        for group in session.play(loaded, group_size=group_size, sampling=sampling):
            store.log_group("rollout", 0, "rollout", group, session.checkpoint.family.decode)
            for line in describe(group):
                progress.print(line)
    return store.path


def evaluate_checkpoint(config: RunConfig, *, checkpoint: Path | None) -> Path:
    """Measure a checkpoint as the end of a run does; returns the directory of the result, beside that of the run."""
    rows = _held_out(config)
    section = config.evaluate
    assert section is not None
    results = {}
    with _session(config, "eval", checkpoint) as (session, store, progress):
        dataset = session.dataset(rows, section.limit)
        for part in ("tools", "no_tools") if section.without_tools else ("tools",):
            shown = Shown(progress, f"evaluation {part}", len(dataset), keep=config.report.trajectories // 2)
            results[part] = evaluate(session, dataset, use_tools=part == "tools", on_group=shown)
            store.write_groups(part, shown.first, session.checkpoint.family.decode)
        result = summary(results, [reward.name for reward in config.rewards])
        write_atomic(store.path / "summary.json", json.dumps(result, indent=1) + "\n")
    return store.path


def describe(group: Group) -> Iterator[str]:
    """A line per trajectory: what was asked, done, answered and earned."""
    for trajectory in group.trajectories:
        steps = [call.name for turn in trajectory.turns for call in turn.calls]
        scores = "  ".join(f"{name} {score.value:.2f}" for name, score in trajectory.scores.items())
        route = " > ".join([*steps, f"{trajectory.answer or trajectory.stop.value!r}"])
        yield f"{trajectory.sample_id}.{trajectory.index}  {route}  (gold {group.sample.gold.answer!r})  {scores}"


def _held_out(config: RunConfig) -> str:
    if config.evaluate is None:
        raise ConfigError("evaluate: the configuration names no held-out rows; add evaluate.rows")
    return config.evaluate.rows


@contextmanager
def _session(config: RunConfig, kind: str, checkpoint: Path | None) -> Iterator[tuple[Session, RunStore, Progress]]:
    """Everything opened, in a directory of its own that is emptied first."""
    folder = _model_folder(checkpoint)
    config = config.model_copy(update={"name": f"{config.name}-{kind}"})
    store = RunStore(config.run_dir)
    try:
        store.clear()
        write_atomic(store.path / "config.yaml", dump_config(config))
        with Progress() as progress:
            progress.print(f"model: {folder or config.model_path}")
            yield open_session(config, model_path=folder, tell=progress.print), store, progress
    finally:
        store.close()


def _model_folder(checkpoint: Path | None) -> Path | None:
    """The folder that transformers loads; a run's checkpoint holds it as `model`."""
    if checkpoint is None:
        return None
    if not checkpoint.is_dir():
        raise ConfigError(f"--checkpoint: no folder {checkpoint}")
    return checkpoint / "model" if (checkpoint / "model").is_dir() else checkpoint
