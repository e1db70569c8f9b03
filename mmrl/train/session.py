"""A run's parts, put together from its configuration: model, engine, tools, rewards, data."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from mmrl.adapt.rewards import build_rewards
from mmrl.adapt.tools import build_tools
from mmrl.cache.disk import DiskTier, tower_version
from mmrl.cache.features import FeatureCache
from mmrl.cache.media import SHARED, MediaLoader
from mmrl.config import CacheSection, EpisodeSection, RowsFile, RunConfig
from mmrl.data.dataset import BadRows, Dataset, Mixture, RowSource, build_processors
from mmrl.errors import ConfigError
from mmrl.models.load import Checkpoint, load_checkpoint
from mmrl.protocols import ModelFamily, PolicyEngine, RewardContext
from mmrl.resolve import build
from mmrl.rollout.engine_hf import HFEngine
from mmrl.rollout.episode import Limits, Prompt, Rules, Sampling
from mmrl.rollout.runner import Runner
from mmrl.rollout.script import Step
from mmrl.rollout.seeds import derive_seed
from mmrl.scoring import WeightedReward
from mmrl.train.ahead import HoldingEngine, Rollouts
from mmrl.train.optim import check_stages
from mmrl.types import Group


@dataclass(slots=True, kw_only=True)
class Session:
    """What every stage, evaluation and rollout of a run shares."""

    config: RunConfig
    checkpoint: Checkpoint
    runner: Runner
    rewards: tuple[WeightedReward, ...]
    media: MediaLoader
    bad: BadRows
    tell: Callable[[str], None] = print
    datasets: dict[tuple[RowsFile, int | None], Dataset] = field(default_factory=dict)
    in_flight: Rollouts | None = None
    """What was begun last, as long as it may not be finished."""

    def dataset(self, rows: str | Sequence[RowsFile], limit: int | None = None) -> RowSource:
        """The rows of a file or of several; each file is read once. `limit` holds for each file."""
        files = [RowsFile(path=rows)] if isinstance(rows, str) else rows
        parts = [self._file(file, limit) for file in files]
        return parts[0] if len(parts) == 1 else Mixture(parts, [file.weight for file in files])

    def _file(self, file: RowsFile, limit: int | None) -> Dataset:
        key = (file.model_copy(update={"weight": 1.0}), limit)
        if key not in self.datasets:
            self.datasets[key] = Dataset(
                file.path,
                self.media,
                self.bad,
                format=file.format,
                media_root=file.media_root,
                limit=limit,
                tell=self.tell,
            )
        return self.datasets[key]

    def decoders(self) -> dict[str, str]:
        """What decodes the media of the rows read so far: other decoders give other pixels."""
        kinds = {ref.kind for rows in self.datasets.values() for sample in rows.samples for ref in sample.media}
        return self.media.provenance(kinds)

    def seed(self, *parts: int | str) -> int:
        return derive_seed(self.config.seed, *parts)

    def weights_changed(self, *, vision: bool) -> None:
        self.runner.engine.weights_changed(vision=vision)

    def prompt(
        self,
        rows: RowSource,
        index: int,
        *,
        media: MediaLoader | None = None,
        use_tools: bool = True,
        sampled: bool = True,
    ) -> Prompt | None:
        """A row made ready for its group, or None for one that cannot be used: it is counted and told.

        Args:
            media: loads the row's media, where it is to be looked at in another way than the run's own.
            sampled: whether the run's engine is to answer it; a demonstration needs none.
        """
        loaded = rows.load(index, media)
        if loaded is None:
            return None
        try:
            prompt = self.runner.prompt(loaded, index, use_tools=use_tools)
            if sampled:
                self.runner.engine.check(prompt.tokens)
        except ValueError as error:  # a kind of medium, or a size, that model or engine does not take
            rows.refuse(index, str(error))
            return None
        return prompt

    def play(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        sampling: Sampling,
        step: int = 0,
        on_group: Callable[[Group], None] = lambda group: None,
    ) -> list[Group]:
        """Rollouts of `prompts`, scored; one group each, in order. By the newest weights, once nothing is in flight."""
        self.settle()
        return asyncio.run(self._play(prompts, group_size, sampling, step, on_group))

    def begin(self, prompts: Sequence[Prompt], *, group_size: int, sampling: Sampling, step: int = 0) -> Rollouts:
        """The same in the background, by the weights of now; at once, where nothing else is in flight."""
        engine = self.runner.engine
        assert isinstance(engine, HoldingEngine), "this engine writes with the trainer's own model"
        self.settle()
        self.in_flight = Rollouts(engine, partial(self._play, prompts, group_size, sampling, step))
        return self.in_flight

    def settle(self) -> None:
        """Wait until nothing is in flight; whoever began it has the rollouts."""
        if self.in_flight is not None:
            self.in_flight.wait()
            self.in_flight = None

    def cancel(self) -> None:
        """End what is in flight, unfinished."""
        if self.in_flight is not None:
            self.in_flight.cancel()
            self.in_flight = None

    async def _play(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        sampling: Sampling,
        step: int,
        on_group: Callable[[Group], None] = lambda group: None,
    ) -> list[Group]:
        prompts = [replace(prompt, row=place) for place, prompt in enumerate(prompts)]
        context = RewardContext(step=step, space=self.runner.family.space)
        return await self.runner.play(prompts, group_size, sampling, self.rewards, context, on_group)


def open_session(
    config: RunConfig,
    *,
    model_path: str | Path | None = None,
    trains: bool = False,
    tell: Callable[[str], None] = print,
) -> Session:
    """Run the setup steps and load everything; the caller closes the engine.

    Args:
        model_path: replaces the configured checkpoint.
        trains: whether the stages are to be trained. Each is checked.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    if config.deterministic:
        # On a GPU some kernels have no deterministic form: they warn, and a run repeats closely instead of to the bit.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
        # Filling memory before it is written takes a tenth of the time and changes no result.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    for number, step in enumerate(config.setup):
        build(step.use, step.fields, f"setup.{number}").prepare(config.seed)
    SHARED.clear()
    SHARED.limit = config.data.cached_bytes
    section = config.model
    checkpoint = load_checkpoint(
        model_path or config.model_path,
        family=section.family,
        dtype=section.dtype,
        device=section.device,
        lora=section.lora,
        seed=config.seed,
    )
    if trains:
        check_stages(config, checkpoint)
    processors = build_processors(config.data, checkpoint.family)
    episode, family, rewards = config.episode, checkpoint.family, build_rewards(config.rewards)
    tools = build_tools(episode.tools, processors["image"], family)
    limits, rules = _limits(episode, family), _rules(episode)
    features = _features(config.cache, checkpoint, tell)
    # Last: servers take minutes to start, and whatever failed behind it would have to end them.
    engine = _engine(config, checkpoint, features, model_path or config.model_path, tell)
    return Session(
        config=config,
        checkpoint=checkpoint,
        runner=Runner(
            engine=engine,
            family=family,
            tools=tools,
            limits=limits,
            rules=rules,
            system=episode.system,
            error_chars=episode.error_chars,
        ),
        rewards=rewards,
        media=MediaLoader(processors),
        bad=BadRows(config.run_dir / "data_errors.jsonl", config.data.max_bad_fraction, tell),
        tell=tell,
    )


def _features(config: CacheSection, checkpoint: Checkpoint, tell: Callable[[str], None]) -> FeatureCache:
    model, family, disk = checkpoint.model, checkpoint.family, None
    if config.folder is not None:
        try:
            Path(config.folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cache.folder: {config.folder} cannot be made ({error.strerror})") from None
        disk = DiskTier(Path(config.folder), config.disk_bytes, tower_version(model, family), tell=tell)
    return FeatureCache(model, family, memory_bytes=config.memory_bytes, chunk_tokens=config.chunk_tokens, disk=disk)


def _engine(
    config: RunConfig,
    checkpoint: Checkpoint,
    features: FeatureCache,
    folder: str | Path,
    tell: Callable[[str], None],
) -> PolicyEngine:
    if config.rollout.engine == "vllm":
        from mmrl.rollout.open_vllm import open_vllm

        logs = config.run_dir / "servers"
        return open_vllm(checkpoint, features, folder, config.rollout, config.episode, logs=logs, tell=tell)
    return HFEngine(
        checkpoint.model,
        checkpoint.family,
        features,
        batch_size=config.rollout.batch_size,
        deterministic=config.deterministic,
    )


def _limits(episode: EpisodeSection, family: ModelFamily) -> Limits:
    return Limits(
        max_turns=episode.max_turns,
        max_calls=episode.max_calls,
        max_calls_per_turn=episode.max_calls_per_turn,
        max_media=episode.max_media,
        max_context=episode.max_context,
        max_turn_tokens=episode.max_turn_tokens,
        final_prefix=family.encode_text(episode.final_prefix),
        final_message=episode.final_message,
    )


def _rules(episode: EpisodeSection) -> Rules:
    return Rules(
        script=tuple(Step(**{**dict(step), "stop": tuple(step.stop)}) for step in episode.script),
        stop=tuple(episode.stop),
        answer_form=episode.answer,
        on_error=episode.on_error,
    )
