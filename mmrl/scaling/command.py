"""`mmrl answer`: one question on the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmrl.config import load_config
from mmrl.errors import ConfigError, DataError
from mmrl.scaling.named import build_strategy
from mmrl.scaling.reasoner import Answer, Reasoner, reference
from mmrl.scaling.votes import tally
from mmrl.train.play import model_folder
from mmrl.types import MediaKind


def answer_question(
    question: str,
    media: Mapping[MediaKind, Sequence[Path]],
    model: str | None,
    config: Path | None,
    strategy: str,
    fields: Sequence[str],
) -> Iterator[str]:
    """Lines that say the answer and what it took. `fields` are "name=value" of the strategy."""
    chosen = build_strategy(strategy, dict(map(_field, fields)), "--strategy")
    refs = [reference(path, kind) for kind, paths in media.items() for path in map(_existing, paths)]
    with _reasoner(model, config) as reasoner:
        return lines(reasoner.answer(refs, question, chosen))


def lines(answer: Answer) -> Iterator[str]:
    yield f"Answer: {'none' if answer.answer is None else answer.answer}"
    if answer.answer is None:
        yield f"It ended with {answer.stop}: {answer.text!r}"
    for number, rung in enumerate(answer.rungs, start=1):
        votes = ", ".join(f"{name or 'no answer'}: {count}" for name, count in tally(rung.trajectories).items())
        yield f"rung {number} ({rung.look.title})  votes {votes}  frames {rung.frames:,}  tokens {rung.tokens:,}"
    yield f"Spent: rungs {len(answer.rungs)}, frames {answer.frames:,}, tokens {answer.tokens:,}"


def _reasoner(model: str | None, config: Path | None) -> Reasoner:
    folder = model_folder(Path(model), "--model") if model and Path(model).exists() else model
    if config is not None:
        return Reasoner.from_config(load_config(config), folder)
    if folder is None:
        raise ConfigError("name a model: --model FOLDER, or --config CONFIG for the model of a run")
    return Reasoner.from_pretrained(folder)


def _field(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text!r}: write name=value")
    return name, value


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return path
