"""Answers single questions about media: a checkpoint, how media are loaded, tools, and a test-time strategy."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from PIL.Image import Image

from mmrl.cache.media import MediaLoader
from mmrl.config import Plugin, RunConfig
from mmrl.data.dataset import load_sample
from mmrl.errors import DataError
from mmrl.protocols import Processor, Tool
from mmrl.rollout.episode import Prompt
from mmrl.rollout.runner import Runner
from mmrl.scaling.closer import closer
from mmrl.scaling.named import build_strategy
from mmrl.scaling.run import Solver
from mmrl.scaling.strategy import Fields, Round, Strategy
from mmrl.scaling.votes import tally
from mmrl.types import MediaKind, MediaRef, Message, Part, Sample, StopReason, Trajectory

SYSTEM = "Think first, inside <think></think>. Then give the answer, as short as you can, inside <answer></answer>."
LIMITS = {"max_context": 1 << 17, "max_turn_tokens": 2048}
"""Of an episode, where the caller does not say."""
ENDINGS: dict[MediaKind, tuple[str, ...]] = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    "video": (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac"),
}
Medium = str | Path | Image | MediaRef
Named = str | Mapping[str, Any]
"""An import path, or a mapping of `use` and fields, as in a configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a question."""

    answer: str | None
    """None: the trajectory that was taken gives none."""
    text: str
    """The last turn of the trajectory whose answer is taken."""
    stop: StopReason
    """Why that trajectory ended."""
    rungs: tuple[Round, ...]
    """Every look with its trajectories, frames and tokens."""
    votes: Mapping[str, int]
    """Of the last rung, most common first; "" stands for no answer."""
    frames: int
    """Pictures shown, summed over rungs and samples."""
    tokens: int
    """Tokens of prompts, answers and tool results, summed over rungs and samples."""

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """Of all rungs, in order."""
        return tuple(trajectory for played in self.rungs for trajectory in played.trajectories)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoner:
    """A model that is ready to be asked. What it encodes of a medium is kept for the next question.

    With `rollout.engine: vllm` of a configuration it must be closed: servers run on until then.

    Example:
        with Reasoner.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct", tools=["mmrl.tools.zoom:Zoom"]) as reasoner:
            print(reasoner.answer("clip.mp4", "What falls?", "sparse-to-dense", start=8, densest=32).answer)
    """

    runner: Runner
    processors: Mapping[MediaKind, Processor]
    batch_size: int
    seed: int = 0

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        processors: Mapping[MediaKind, Named | Processor] | None = None,
        tools: Sequence[Named | Tool] = (),
        system: str = SYSTEM,
        dtype: str = "float32",
        device: str = "auto",
        seed: int = 0,
        **episode: Any,
    ) -> Reasoner:
        """Load a checkpoint: a folder, or a hub's id.

        Args:
            processors: how media are loaded, by kind; by default as a configuration loads them, at sizes that the
                model takes.
            tools: what the model may call.
            episode: other keys of a configuration's `episode`, such as max_turns or max_turn_tokens.
        """
        given = processors or {}
        config = RunConfig.model_validate(
            {
                "name": "answer",
                "deterministic": False,
                "seed": seed,
                "model": {"path": str(path), "dtype": dtype, "device": device},
                "data": {kind: _plugin(named) for kind, named in given.items() if not is_dataclass(named)},
                "episode": {
                    **LIMITS,
                    **episode,
                    "system": system,
                    "tools": [_plugin(named) for named in tools if not is_dataclass(named)],
                },
            }
        )
        reasoner = cls.from_config(config)
        built = {kind: cast(Processor, named) for kind, named in given.items() if is_dataclass(named)}
        own = tuple(cast(Tool, named) for named in tools if is_dataclass(named))
        runner = replace(reasoner.runner, tools=(*reasoner.runner.tools, *own))
        return replace(reasoner, runner=runner, processors={**reasoner.processors, **built})

    @classmethod
    def from_config(cls, config: RunConfig, model_path: str | Path | None = None) -> Reasoner:
        """The model, tools, system prompt and processors of a run. `model_path` replaces its checkpoint."""
        from mmrl.train.session import open_session

        if model_path is not None:  # a question needs no files of the run's own
            config = config.model_copy(update={"setup": []})
        session = open_session(config, model_path=model_path)
        return cls(
            runner=session.runner,
            processors=session.media.processors,
            batch_size=config.rollout.batch_size,
            seed=config.seed,
        )

    def close(self) -> None:
        """End the engine, and the servers that it started."""
        self.runner.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def answer(
        self, media: Medium | Sequence[Medium], question: str, strategy: str | Strategy = "greedy", **fields: Any
    ) -> Answer:
        """Ask one question about media, in their order.

        Args:
            media: paths, PIL images or MediaRefs; the kind of a path is told by its ending.
            strategy: a short name, an import path, or a strategy.
            fields: of a strategy that is named.
        """
        sample = ask(media, question)
        if isinstance(strategy, str):
            strategy = build_strategy(strategy, fields, "strategy")
        elif fields:
            raise TypeError("fields are for a strategy that is named; this one is built already")

        def ready(number: int, looked: Fields) -> Prompt:
            loaded = load_sample(sample, MediaLoader(closer(self.processors, looked)))
            try:
                return self.runner.prompt(loaded, number)
            except ValueError as error:  # a kind of medium, or a size, that the model does not take
                raise DataError(f"question: {error}") from None

        solver = Solver(runner=self.runner, ready=ready, seed=self.seed, batch_size=self.batch_size)
        (outcome,) = solver.solve(1, strategy)
        return Answer(
            answer=outcome.answer,
            text=outcome.winner.turns[-1].text if outcome.winner.turns else "",
            stop=outcome.winner.stop,
            rungs=outcome.rounds,
            votes=tally(outcome.rounds[-1].trajectories),
            frames=outcome.frames,
            tokens=outcome.tokens,
        )


def ask(media: Medium | Sequence[Medium], question: str) -> Sample:
    """A question about media as a row of a dataset: the media first, then the words."""
    several = media if isinstance(media, Sequence) and not isinstance(media, str) else [media]
    refs = tuple(reference(medium) for medium in several)
    parts = (*(Part(media=number) for number in range(len(refs))), Part(text=question))
    return Sample(id="question", messages=(Message(role="user", parts=parts),), media=refs)


def reference(medium: Medium, kind: MediaKind | None = None) -> MediaRef:
    """Where a medium comes from; `kind` of a path is told by its ending where it is None."""
    if isinstance(medium, MediaRef):
        return medium
    if isinstance(medium, Image):
        buffer = io.BytesIO()
        medium.save(buffer, format="PNG")
        return MediaRef(kind="image", data=buffer.getvalue())
    path = Path(medium).resolve()
    kind = kind or next((kind for kind, endings in ENDINGS.items() if path.suffix.lower() in endings), None)
    if kind is None:
        raise DataError(f"{medium}: its ending does not tell what it is; give MediaRef(kind=..., path=...)")
    return MediaRef(kind=kind, path=path.name, root=str(path.parent))


def _plugin(named: Any) -> Plugin:
    return Plugin(use=named) if isinstance(named, str) else Plugin(**named)
