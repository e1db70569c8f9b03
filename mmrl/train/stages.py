"""The stages of a run: each turns one optimiser step's rows into an update and returns what was measured."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch

from mmrl.algo.aggregate import coefficients
from mmrl.algo.correction import Correction
from mmrl.algo.loss import GrpoLoss, SftLoss
from mmrl.cache.media import size
from mmrl.config import GrpoStage, SftStage, stage_name
from mmrl.data.prefetch import Prefetcher
from mmrl.data.sampler import Sampler
from mmrl.errors import DataError
from mmrl.rollout.demonstrate import Demonstrator
from mmrl.rollout.episode import Prompt, Sampling
from mmrl.train.ahead import Pipeline, Rollouts
from mmrl.train.batch import Batch, Watched
from mmrl.train.engine import TorchEngine, target_starts
from mmrl.train.metrics import engine_failures, gap_warning, group_metrics, lagged_bound, mean, policy_lag
from mmrl.train.reference import AdapterReference
from mmrl.train.rows import build_row
from mmrl.train.session import Session
from mmrl.types import Group, Media, Row, StopReason, Trajectory

T = TypeVar("T")
Metrics = dict[str, float]
OnGroup = Callable[[Group], None]


class Stage(Protocol):
    sampler: Sampler

    @property
    def position(self) -> int:
        """Of the sampler, where a run goes on: the first row that no step has used."""
        ...

    def step(self, number: int, on_group: OnGroup) -> Metrics:
        """Optimiser step `number`, from 0."""
        ...

    def close(self) -> None:
        """Load no more rows, and play none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """A demonstration made ready for training."""

    row: Row
    media: dict[str, Media]

    @property
    def num_bytes(self) -> int:
        """Of its pixels and samples."""
        return sum(size(medium) for medium in self.media.values())


class Sft:
    """Supervised training on demonstrations, each of which is played through the episode loop once."""

    def __init__(self, session: Session, config: SftStage, engine: TorchEngine) -> None:
        self.session, self.config, self.engine = session, config, engine
        self.dataset = session.dataset(config.rows)
        self.sampler = self.dataset.sampler(session.seed(stage_name(config), "order"))
        self.ahead = Prefetcher(session.media)
        self.examples: OrderedDict[int, Example] = OrderedDict()
        """The latest used, within `data.cached_bytes` of pixels and samples."""
        self.num_bytes = 0

    @property
    def position(self) -> int:
        return self.sampler.position

    def step(self, number: int, on_group: OnGroup) -> Metrics:
        del on_group  # nothing is sampled
        examples = draw(self.sampler, self.config.examples_per_step, self._example)
        coming = upcoming(self, self.config.examples_per_step, number)
        self.ahead.start(ref for index in coming if index not in self.examples for ref in self.dataset.refs(index))
        rows = [example.row for example in examples]
        media = {key: medium for example in examples for key, medium in example.media.items()}
        trajectory_N = np.repeat(np.arange(len(rows)), [len(row.target_N) for row in rows])
        coef_N = coefficients("token_mean", trajectory_N, np.arange(len(rows)))
        before = self.engine.features.encoded
        self.session.runner.engine.sleep()
        metrics = self.engine.update(rows, media, SftLoss(coef_N=torch.from_numpy(coef_N)))
        encoded = float(self.engine.features.encoded - before)
        return metrics | {"tokens": float(sum(len(row.ids_T) for row in rows)), "media_encoded": encoded}

    def close(self) -> None:
        self.ahead.close()

    def _example(self, index: int) -> Example | None:
        if index in self.examples:
            self.examples.move_to_end(index)
            return self.examples[index]
        prompt = self.session.prompt(self.dataset, index, sampled=False)
        if prompt is None:
            return None
        trajectory = demonstrate(self.session, prompt)
        if trajectory.stop is not StopReason.ANSWERED:
            self.dataset.refuse(index, f"the demonstration is not played to its answer: {ending(trajectory)}")
            return None
        example = Example(
            row=build_row(trajectory, self.session.checkpoint.family),
            # Training needs what the model sees, not the large originals.
            media={key: replace(m, original=None) for key, m in trajectory.media.items()},
        )
        self._keep(index, example)
        return example

    def _keep(self, index: int, example: Example) -> None:
        self.examples[index] = example
        self.num_bytes += example.num_bytes
        while self.num_bytes > self.session.config.data.cached_bytes:
            self.num_bytes -= self.examples.popitem(last=False)[1].num_bytes


class Grpo:
    """Group-relative policy optimisation (GRPO, arXiv 2402.03300) on multi-turn rollouts.

    With `rollout.staleness` the rollouts of the next step are begun before this one's update; the stage must then train
    no media tower (mmrl.train.optim.check_stages).
    """

    def __init__(
        self,
        session: Session,
        config: GrpoStage,
        engine: TorchEngine,
        reference: TorchEngine | AdapterReference | None,
    ) -> None:
        self.session, self.config, self.engine, self.reference = session, config, engine, reference
        self.staleness = session.config.rollout.staleness
        section = config.correction_of(session.config.rollout)
        self.correction = Correction(**section.model_dump()) if section else None
        self.told: set[str] = set()
        """Warnings that were given: each is once a stage."""
        self.lagged_gaps: list[float] = []
        """Mean gaps of the steps whose rollouts were stale."""
        self.dataset = session.dataset(config.rows)
        self.sampler = self.dataset.sampler(session.seed(stage_name(config), "order"))
        self.ahead = Prefetcher(session.media)
        self.pipeline = Pipeline(self._begin, self.sampler, config.steps)

    @property
    def position(self) -> int:
        return self.pipeline.position

    def step(self, number: int, on_group: OnGroup) -> Metrics:
        start, before = time.perf_counter(), self.engine.features.encoded
        self.engine.temperature = self.config.temperature.at(number)
        groups = (self.pipeline.groups if self.staleness else self._rollouts)(number, on_group)
        rollout_seconds = time.perf_counter() - start
        self._tell_once("engine failure", engine_failures(groups), number)
        metrics = group_metrics(groups) | self._update(groups, number)
        encoded = float(self.engine.features.encoded - before)
        return metrics | {"seconds/rollout": rollout_seconds, "media_encoded": encoded}

    def close(self) -> None:
        self.ahead.close()
        self.session.cancel()

    def _rollouts(self, number: int, on_group: OnGroup) -> list[Group]:
        prompts, sampling = self._prompts(number), self._sampling(number)
        # A tower that is trained is encoded with its graph, which the update then uses: one encode serves both.
        with self.engine.features.tracked() if self.engine.trains_vision else nullcontext():
            return self.session.play(
                prompts, group_size=self.config.group_size, sampling=sampling, step=number, on_group=on_group
            )

    def _begin(self, number: int) -> Rollouts:
        prompts, sampling = self._prompts(number), self._sampling(number)
        return self.session.begin(prompts, group_size=self.config.group_size, sampling=sampling, step=number)

    def _prompts(self, number: int) -> list[Prompt]:
        prompts = draw(self.sampler, self.config.prompts_per_step, partial(self.session.prompt, self.dataset))
        coming = upcoming(self, self.config.prompts_per_step, number)
        self.ahead.start(ref for index in coming for ref in self.dataset.refs(index))
        return prompts

    def _sampling(self, number: int) -> Sampling:
        seed = self.session.seed(stage_name(self.config), "rollout", number)
        return Sampling(temperature=self.config.temperature.at(number), seed=seed)

    def _update(self, groups: Sequence[Group], number: int) -> Metrics:
        """One pass or more over the batch. Without a usable trajectory there is none, and the step is skipped."""
        self.session.runner.engine.sleep()
        seed = self.session.seed(stage_name(self.config), "shuffle", number)
        batch = Batch(groups, self.session.checkpoint.family, self.config, seed)
        if not batch.rows:
            return {"skipped": 1.0}
        strict = self.config.epochs == self.config.minibatches == 1
        old_N = None if strict else self.engine.logprobs(batch.rows, batch.media)
        ref_N = None
        if self.reference is not None and self.config.kl_beta.at(number) > 0:
            self.reference.temperature = self.engine.temperature
            ref_N = self.reference.logprobs(batch.rows, batch.media).double()
        updates = [
            self._update_part(batch, part, old_N, ref_N, number)
            for _ in range(self.config.epochs)
            for part in batch.minibatches(self.config.minibatches)
        ]
        metrics = {key: mean([measured[key] for measured, _ in updates]) for key in updates[0][0]}
        start_N = updates[0][1] if old_N is None else old_N
        metrics |= batch.metrics() | batch.mismatch(start_N, self.correction)
        metrics |= policy_lag(batch.turns, self.session.runner.engine.version)
        self._watch_gap(metrics, number)
        return metrics

    def _watch_gap(self, metrics: Metrics, number: int) -> None:
        limit = self.config.max_engine_gap
        if limit is None:
            return
        if self.staleness and metrics.get("policy_lag"):
            words = gap_warning(metrics, *lagged_bound(limit, self.lagged_gaps))
            self.lagged_gaps.append(metrics["engine_gap/mean"])
        else:
            words = gap_warning(metrics, limit)
        self._tell_once("gap", words, number)

    def _tell_once(self, what: str, words: str | None, number: int) -> None:
        if words and what not in self.told:
            self.session.tell(f"{stage_name(self.config)} step {number + 1}: {words}")
            self.told.add(what)

    def _update_part(
        self,
        batch: Batch,
        part: np.ndarray,
        old_N: torch.Tensor | None,
        ref_N: torch.Tensor | None,
        number: int,
    ) -> tuple[Metrics, torch.Tensor]:
        """One optimiser step; also the trainer's log-probs before it, (M,)."""
        starts = target_starts(batch.rows)
        target_M = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in part])
        lengths = [len(batch.rows[i].target_N) for i in part]
        trajectory_M = np.repeat(np.arange(len(part)), lengths)
        coef_M = coefficients(self.config.aggregate, trajectory_M, batch.group_B[part], self.config.aggregate_length)
        loss = GrpoLoss(
            advantages_N=torch.from_numpy(batch.advantages_B[part][trajectory_M]),
            coef_N=torch.from_numpy(coef_M),
            trajectory_N=torch.from_numpy(trajectory_M),
            old_logprobs_N=None if old_N is None else old_N[target_M].double(),
            ref_logprobs_N=None if ref_N is None else ref_N[target_M],
            engine_logprobs_N=torch.from_numpy(batch.engine_logprobs_N[target_M]),
            correction=self.correction,
            clip_low=self.config.clip_low,
            clip_high=self.config.clip_high,
            dual_clip=self.config.dual_clip,
            ratio=self.config.ratio,
            kl_beta=self.config.kl_beta.at(number),
            kl=self.config.kl,
            entropy_coef=self.config.entropy_coef.at(number),
        )
        seen = Watched(loss)
        rows = [batch.rows[i] for i in part]
        media = {span.key: batch.media[span.key] for row in rows for span in row.spans}
        metrics = self.engine.update(rows, media, seen)
        return metrics | {"clip_fraction": loss.clip_fraction(seen.logprobs_N)}, seen.logprobs_N


def draw(sampler: Sampler, count: int, load: Callable[[int], T | None]) -> list[T]:
    """`count` usable items; an unusable one is replaced by the next row drawn."""
    items: list[T] = []
    for _ in range(count + sampler.num_rows):
        if len(items) == count:
            return items
        item = load(sampler.draw())
        if item is not None:
            items.append(item)
    raise DataError("too few usable rows to fill a batch; see data_errors.jsonl")


def upcoming(stage: Sft | Grpo, per_step: int, number: int) -> list[int]:
    """Indices of the rows that the steps after `number` draw, as far as their media are decoded ahead."""
    steps = min(stage.session.config.data.prefetch_steps, stage.config.steps - number - 1)
    return stage.sampler.peek(per_step * steps)


def demonstrate(session: Session, prompt: Prompt) -> Trajectory:
    """The row's demonstration, played through the episode loop."""
    runner = session.runner
    engine = Demonstrator(prompt.sample.demonstration, runner.family, runner.tools)
    episode = runner.episode(prompt, 0, Sampling(temperature=0.0, seed=0), engine)
    return asyncio.run(episode.run())


def ending(trajectory: Trajectory) -> str:
    """How a trajectory ended, in words for an error message."""
    error = trajectory.turns[-1].error if trajectory.turns else None
    return f"{trajectory.stop.value} after {len(trajectory.turns)} turn(s)" + (f" ({error})" if error else "")
