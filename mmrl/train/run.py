"""A training run: stages, validations, checkpoints and evaluations. The same command continues an unfinished run."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmrl.cache.features import FeatureCache
from mmrl.config import GrpoStage, RunConfig, SftStage, stage_name
from mmrl.errors import MmrlError, StoppedError
from mmrl.models.load import load_checkpoint
from mmrl.report.progress import Progress
from mmrl.report.store import RunStore, write_atomic
from mmrl.scaling.named import build_strategies
from mmrl.train import checkpoint
from mmrl.train.claim import TEST_TIME, claim, write_manifest
from mmrl.train.engine import NonFiniteError, TorchEngine
from mmrl.train.evaluate import Shown, evaluate, evaluate_strategies, summary
from mmrl.train.optim import build_optimizer, select_parameters, set_learning_rate
from mmrl.train.reference import AdapterReference
from mmrl.train.session import open_session
from mmrl.train.stages import Grpo, Sft
from mmrl.types import Group

MAX_SKIPPED = 5
"""Steps in a row without an update, after which a run ends."""


def train(config: RunConfig, *, overwrite: bool = False) -> Path:
    """Start the run that `config` describes, or go on with it; returns the run directory.

    Raises StoppedError after SIGINT or SIGTERM, at the end of the step, with a checkpoint written.
    """
    store = RunStore(config.run_dir)
    try:
        if overwrite:
            store.clear()
        claim(store, config)
        with Progress() as progress:
            run = Run(config, store, progress)
            with closing(run.session.runner.engine):
                run.run()
    finally:
        store.close()
    return config.run_dir


class Run:
    """One training run in its directory."""

    def __init__(self, config: RunConfig, store: RunStore, progress: Progress) -> None:
        self.config, self.store, self.progress = config, store, progress
        self.names = [stage_name(stage) for stage in config.stages]
        self.rewards = [reward.name for reward in config.rewards]
        self.strategies = build_strategies(config.evaluate.test_time) if config.evaluate else {}
        self.checkpoints = store.path / "checkpoints"
        self.last = self._last_checkpoint()
        self.state = checkpoint.read_state(self.last) if self.last else None
        self.train_seconds = self.state.train_seconds if self.state else 0.0
        model_path = self.last / "model" if self.last else None
        self.session = open_session(config, model_path=model_path, trains=True, tell=progress.print)
        self.session.runner.engine.version = self._steps_done()

    def run(self) -> None:
        """All stages from where the run stands, then the evaluations and the summary."""
        self.store.rewind(self._is_past)
        for number, section in enumerate(self.config.stages):
            if self.state is None or number >= self.state.stage:
                self._stage(number, section)
        if self.config.evaluate:
            self._evaluate("after")
            if self.config.evaluate.without_tools:
                self._evaluate("no_tools")
            result = {"train_seconds": self.train_seconds, **summary(self._evaluations(), self.rewards)}
            if self.strategies:
                result["test_time"] = self._test_time()
            write_manifest(self.store, self.session.decoders())
            write_atomic(self.store.path / "summary.json", json.dumps(result, indent=1) + "\n")

    def _stage(self, number: int, section: SftStage | GrpoStage) -> None:
        state = self.state if self.state and self.state.stage == number else None
        evaluation = self.config.evaluate
        if state is None and evaluation and evaluation.before_stage == self.names[number]:
            self._evaluate("before")
        active = self._activate(number, section, state)
        write_manifest(self.store, self.session.decoders())
        done = state.step if state else 0
        self.progress.stage(active.name, section.steps, done)
        with closing(active.stage), stop_on_signal() as stop:
            skipped = 0
            for step in range(done, section.steps):
                metrics = self._step(active, step)
                skipped = skipped + 1 if "skipped" in metrics else 0
                if skipped == MAX_SKIPPED:
                    raise MmrlError(
                        f"{active.name}: no update in {skipped} steps in a row, the last of them step {step + 1}: loss "
                        "or gradient not finite, or no rollout that could be scored; see metrics.jsonl and rollouts/. "
                        "The weights are as they were before these steps"
                    )
                if stop.requested or self._due(active, step + 1, metrics):
                    self._save(active, step + 1, metrics)
                if stop.requested:
                    raise StoppedError(f"stopped after {active.name} step {step + 1}; the same command continues there")

    def _activate(self, number: int, section: SftStage | GrpoStage, state: checkpoint.State | None) -> _Active:
        """The stage's parts; with `state`, as they were when the last checkpoint was written."""
        parameters = select_parameters(self.session.checkpoint.model, section.train, section.freeze)
        optimizer = build_optimizer(parameters, section.optimizer)
        engine = self._engine(self.session.checkpoint.model, section, optimizer, self.session.runner.engine.features)
        engine.checkpoint_activations(section.activation_checkpointing)
        if self.config.cache.folder and engine.trains_vision:
            self.progress.print(f"cache.folder: unused from {stage_name(section)} on, which trains the media encoder")
        stage: Sft | Grpo
        if isinstance(section, SftStage):
            stage = Sft(self.session, section, engine)
        else:
            resumed = state is not None
            reference = self._reference(section, engine, resumed=resumed) if section.uses_reference else None
            stage = Grpo(self.session, section, engine, reference)
        if state is not None and self.last is not None:
            checkpoint.restore(self.last, parameters, optimizer)
            stage.sampler.position = state.position
        return _Active(number, self.names[number], section, stage, parameters, optimizer)

    def _engine(
        self,
        model: Any,
        section: SftStage | GrpoStage,
        optimizer: torch.optim.Optimizer | None,
        features: FeatureCache | None,
    ) -> TorchEngine:
        cache, family = self.config.cache, self.session.checkpoint.family
        if features is None:
            features = FeatureCache(model, family, memory_bytes=cache.memory_bytes, chunk_tokens=cache.chunk_tokens)
        return TorchEngine(
            model,
            family,
            optimizer,
            micro_batch_tokens=section.micro_batch_tokens,
            max_grad_norm=section.optimizer.max_grad_norm,
            features=features,
        )

    def _reference(self, section: GrpoStage, engine: TorchEngine, *, resumed: bool) -> TorchEngine | AdapterReference:
        """The policy as it was when the stage began; kept on disk, so that a resumed stage has the same one."""
        path = self.store.path / "reference" / stage_name(section)
        if not resumed:
            self.session.checkpoint.save(path)
        # A tower that is not trained stays the policy's, and so do its features.
        features = None if engine.trains_vision else engine.features
        if self.session.checkpoint.adapter is not None:
            model = self.session.checkpoint.model
            return AdapterReference(self._engine(model, section, None, features), model, path)
        loaded = load_checkpoint(
            path,
            family=self.config.model.family,
            dtype=self.config.model.dtype,
            device=self.config.model.device,
        )
        return self._engine(loaded.model.requires_grad_(False), section, None, features)

    def _step(self, active: _Active, step: int) -> dict[str, float]:
        """One optimiser step and what follows it but the checkpoint."""
        start = time.perf_counter()
        seed_everything(self.session.seed(active.name, "step", step))
        rate = set_learning_rate(active.optimizer, active.section.optimizer, step)
        metrics = self._update(active, step)
        seconds = time.perf_counter() - start
        if "tokens" in metrics:
            metrics["tokens_per_second"] = metrics["tokens"] / seconds
        metrics |= {"lr": rate, "seconds/step": seconds, **self._validate(active.section, step + 1)}
        self.train_seconds += time.perf_counter() - start
        self.store.log_metrics(active.name, step + 1, metrics)
        self._show(step + 1, metrics)
        return metrics

    def _update(self, active: _Active, step: int) -> dict[str, float]:
        """A step that is not finite leaves the weights as they are and is counted."""
        try:
            metrics = active.stage.step(step, self._logger(active.name, step + 1))
        except NonFiniteError as error:
            self.progress.print(f"{active.name} step {step + 1} skipped: {error}")
            metrics = {"skipped": 1.0}
        self.session.weights_changed(vision=active.stage.engine.trains_vision)
        return metrics

    def _logger(self, stage: str, step: int) -> Callable[[Group], None]:
        """Writes the first groups of a step to the run's stream."""
        left = [self.config.report.log_groups]

        def log(group: Group) -> None:
            if left[0] > 0:
                left[0] -= 1
                self.store.log_group(stage, step, "train", group, self.session.checkpoint.family.decode)

        return log

    def _validate(self, section: SftStage | GrpoStage, step: int) -> dict[str, float]:
        settings = section.validation
        if settings is None or step % settings.every:
            return {}
        metrics = evaluate(self.session, self.session.dataset(settings.rows, settings.limit))
        return {f"validation/{name}": value for name, value in metrics.items()}

    def _due(self, active: _Active, step: int, metrics: dict[str, float]) -> bool:
        """Whether a checkpoint is written: at the stage's end, every so often, and whenever validation is best."""
        every = self.config.checkpoint.every
        if step == active.section.steps or (every and step % every == 0):
            return True
        value = self._metric(metrics)
        if value is None:
            return False
        best = checkpoint.best_metric(self.checkpoints)
        return best is None or value > best

    def _metric(self, metrics: dict[str, float]) -> float | None:
        return metrics.get(f"validation/{self.config.checkpoint.best}")

    def _save(self, active: _Active, step: int, metrics: dict[str, float]) -> None:
        state = checkpoint.State(
            stage=active.number,
            stage_name=active.name,
            step=step,
            position=active.stage.position,
            train_seconds=self.train_seconds,
            metric=self._metric(metrics),
        )
        checkpoint.save(self.checkpoints, self.session.checkpoint, active.parameters, active.optimizer, state)
        checkpoint.prune(self.checkpoints, self.config.checkpoint.keep)

    def _show(self, step: int, metrics: dict[str, float]) -> None:
        names = ("loss", "reward", *(f"score/{name}" for name in self.rewards[:1]), "tokens_per_second")
        self.progress.update(step, **{name: metrics[name] for name in names if name in metrics})

    def _evaluate(self, part: str) -> None:
        """Measure the model on the held-out rows; what was measured before an interruption is kept."""
        section, done = self.config.evaluate, self._evaluations()
        if part in done or section is None:
            return
        dataset = self.session.dataset(section.rows, section.limit)
        shown = Shown(self.progress, f"evaluation {part}", len(dataset), keep=self.config.report.trajectories // 2)
        metrics = evaluate(self.session, dataset, use_tools=part != "no_tools", on_group=shown)
        self.store.write_groups(part, shown.first, self.session.checkpoint.family.decode)
        write_atomic(self._evaluations_path, json.dumps({**done, part: metrics}, indent=1))

    def _test_time(self) -> dict[str, dict[str, float]]:
        """Accuracy and cost of each test-time strategy on the held-out rows; what was measured already is kept."""
        section, path = self.config.evaluate, self.store.path / TEST_TIME
        assert section is not None
        if not path.exists():
            dataset = self.session.dataset(section.rows, section.limit)
            found = evaluate_strategies(self.session, dataset, self.strategies, self.progress, self.store)
            write_atomic(path, json.dumps(found, indent=1))
        return dict(json.loads(path.read_text()))

    @property
    def _evaluations_path(self) -> Path:
        return self.store.path / "evaluations.json"

    def _evaluations(self) -> dict[str, Any]:
        path = self._evaluations_path
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _last_checkpoint(self) -> Path | None:
        found = checkpoint.complete(self.checkpoints)
        if not found:
            return None
        checkpoint.verify(found[-1])
        state = checkpoint.read_state(found[-1])
        self.progress.print(f"continuing after {state.stage_name} step {state.step}")
        return found[-1]

    def _steps_done(self) -> int:
        if self.state is None:
            return 0
        return sum(stage.steps for stage in self.config.stages[: self.state.stage]) + self.state.step

    def _is_past(self, line: dict[str, Any]) -> bool:
        """Whether a logged line lies before the checkpoint that the run goes on from."""
        if self.state is None:
            return False
        return (self.names.index(line["stage"]), line["step"]) <= (self.state.stage, self.state.step)


@dataclass(frozen=True, slots=True)
class _Active:
    """The stage that runs."""

    number: int
    name: str
    section: SftStage | GrpoStage
    stage: Sft | Grpo
    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer


def seed_everything(seed: int) -> None:
    """Seed the global generators, so that nothing a step draws depends on what came before it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Stop:
    """Whether the user asked the run to stop. A plain flag: a handler that takes a lock may meet itself and wait."""

    requested = False


@contextmanager
def stop_on_signal(signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[Stop]:
    """A flag that is raised by the first signal; a second one acts as ever."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in signals}

    def note(number: int, frame: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        stop.requested = True

    for number in signals:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
