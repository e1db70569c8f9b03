"""A run's parts, put together from its configuration: model, engine, tools, rewards, data."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mmrl.cache.features import FeatureCache
from mmrl.config import Plugin, RunConfig
from mmrl.data.dataset import BadRows, Dataset, Loaded
from mmrl.errors import ConfigError
from mmrl.models.load import Checkpoint, load_checkpoint
from mmrl.protocols import Processor, RewardContext, Tool
from mmrl.resolve import build
from mmrl.rollout.engine_hf import HFEngine
from mmrl.rollout.episode import Limits, Sampling
from mmrl.rollout.runner import Runner
from mmrl.rollout.seeds import derive_seed
from mmrl.scoring import WeightedReward
from mmrl.types import Group


@dataclass(slots=True, kw_only=True)
class Session:
    """What every stage, evaluation and rollout of a run shares."""

    config: RunConfig
    checkpoint: Checkpoint
    runner: Runner
    rewards: tuple[WeightedReward, ...]
    image: Processor
    bad: BadRows
    tell: Callable[[str], None] = print
    datasets: dict[tuple[str, int | None], Dataset] = field(default_factory=dict)

    def dataset(self, rows: str, limit: int | None = None) -> Dataset:
        """The rows of a file; read once."""
        key = (rows, limit)
        if key not in self.datasets:
            self.datasets[key] = Dataset(rows, self.image, self.bad, cached=self.config.data.cached_images, limit=limit)
        return self.datasets[key]

    def seed(self, *parts: int | str) -> int:
        return derive_seed(self.config.seed, *parts)

    def weights_changed(self, *, vision: bool) -> None:
        self.runner.engine.weights_changed(vision=vision)

    def play(
        self,
        rows: Sequence[Loaded],
        *,
        group_size: int,
        sampling: Sampling,
        step: int = 0,
        use_tools: bool = True,
        on_group: Callable[[Group], None] = lambda group: None,
    ) -> list[Group]:
        """Rollouts of `rows`, scored; one group each, in order."""
        prompts = [self.runner.prompt(row, number, use_tools=use_tools) for number, row in enumerate(rows)]
        context = RewardContext(step=step)
        return asyncio.run(self.runner.play(prompts, group_size, sampling, self.rewards, context, on_group))


def open_session(
    config: RunConfig, *, model_path: str | Path | None = None, tell: Callable[[str], None] = print
) -> Session:
    """Run the setup steps and load everything. `model_path` replaces the configured checkpoint."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    if config.deterministic:
        # On a GPU some kernels have no deterministic form: they warn, and a run repeats closely instead of to the bit.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    for number, step in enumerate(config.setup):
        build(step.use, step.fields, f"setup.{number}").prepare(config.seed)
    section = config.model
    checkpoint = load_checkpoint(
        model_path or config.model_path, family=section.family, dtype=section.dtype, device=section.device
    )
    return Session(
        config=config,
        checkpoint=checkpoint,
        runner=_runner(config, checkpoint),
        rewards=_rewards(config),
        image=build(config.data.image.use, config.data.image.fields, "data.image"),
        bad=BadRows(config.run_dir / "data_errors.jsonl", config.data.max_bad_fraction, tell),
        tell=tell,
    )


def _runner(config: RunConfig, checkpoint: Checkpoint) -> Runner:
    episode, family = config.episode, checkpoint.family
    engine = HFEngine(
        checkpoint.model,
        family,
        FeatureCache(checkpoint.model, family),
        batch_size=config.rollout.batch_size,
        deterministic=config.deterministic,
    )
    limits = Limits(
        max_turns=episode.max_turns,
        max_calls=episode.max_calls,
        max_calls_per_turn=episode.max_calls_per_turn,
        max_media=episode.max_media,
        max_context=episode.max_context,
        max_turn_tokens=episode.max_turn_tokens,
        final_prefix=family.encode_text(episode.final_prefix),
    )
    tools: list[Tool] = [_tool(plugin, number) for number, plugin in enumerate(episode.tools)]
    return Runner(
        engine=engine,
        family=family,
        tools=tuple(tools),
        limits=limits,
        system=episode.system,
        error_chars=episode.error_chars,
    )


def _tool(plugin: Plugin, number: int) -> Tool:
    tool: Tool = build(plugin.use, plugin.fields, f"episode.tools.{number}")
    for needed in ("name", "description", "arguments", "run"):
        if not hasattr(tool, needed):
            raise ConfigError(f"episode.tools.{number}: {plugin.use} is not a tool: it has no {needed!r}")
    return tool


def _rewards(config: RunConfig) -> tuple[WeightedReward, ...]:
    rewards = []
    for number, section in enumerate(config.rewards):
        reward = build(section.use, section.fields, f"rewards.{number}")
        if not hasattr(reward, "score"):
            raise ConfigError(f"rewards.{number}: {section.use} is not a reward: it has no 'score'")
        rewards.append(WeightedReward(name=section.name, reward=reward, weight=section.weight.at))
    return tuple(rewards)
