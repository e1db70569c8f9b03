"""Checks every row of a file before a run does: that it can be read, shown, and scored by the run's rewards."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmrl.adapt.rewards import build_rewards
from mmrl.boxes import valid_box, was_clipped
from mmrl.cache.media import MediaLoader
from mmrl.config import DataSection, RowsFile, RunConfig
from mmrl.data.dataset import Loaded, build_processors, load_sample
from mmrl.data.dry_run import GoldScore, score_gold
from mmrl.data.rows import read_rows
from mmrl.errors import DataError, MediaError
from mmrl.protocols import ModelFamily, Processor, RewardContext
from mmrl.types import Media, Message, Sample, Tokens

Encode = Callable[[Loaded], Tokens]
SAME = 1e-6
"""Scores that differ by less are equal."""
SHOWN = 20
"""Problems that are printed."""
MAX_TEXT = 2000
"""Characters that are shown of a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with a row."""

    row: int
    kind: str
    """row, media, model (it cannot be given the row), gold, or "reward NAME"."""
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check found; `example` is the first good row."""

    file: str
    rows: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    example: Loaded | None
    prompt_tokens: int | None
    """Of the example, system text and tools included; None where no local model is configured."""

    @property
    def bad(self) -> int:
        return len({problem.row for problem in self.problems})

    @property
    def counts(self) -> dict[str, int]:
        """Problems of each kind, the most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

    def as_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "rows": self.rows,
            "bad": self.bad,
            "counts": self.counts,
            "notes": list(self.notes),
            "problems": [asdict(problem) for problem in self.problems],
        }


def check_file(
    file: RowsFile,
    config: RunConfig | None,
    *,
    tell: Callable[[str], None] = lambda line: None,
    begin: Callable[[int], None] = lambda rows: None,
    update: Callable[[int], None] = lambda rows: None,
) -> Report:
    """Check every row. DataError where the file as a whole cannot be read.

    Args:
        config: gives processors, rewards and, where it is a local folder, the model; without it, the default
            processors and nothing else.
        begin, update: are told how many rows there are, and how many are done.
    """
    samples, errors = read_rows(file.path, format=file.format, media_root=file.media_root, tell=tell)
    problems = [_unreadable(error, file.path) for error in errors]
    family = _family(config) if config and Path(config.model_path).is_dir() else None
    processors = build_processors(config.data if config else DataSection(), family)
    loader = MediaLoader(processors)
    encode = _encoder(config, family, processors["image"]) if config and family else None
    rewards = build_rewards(config.rewards) if config else ()
    answer_form = config.episode.answer if config else "tag"
    context = RewardContext(step=0, space=family.space) if family else RewardContext(step=0)
    scores: dict[int, dict[str, GoldScore]] = {}
    example, clipped = None, 0
    begin(len(samples))
    with asyncio.Runner() as runner:
        for done, sample in enumerate(samples, 1):
            found = _load(sample, loader, encode, file.path)
            if isinstance(found, Problem):
                problems.append(found)
            else:
                row = _number(sample.where, file.path)
                scores[row] = runner.run(score_gold(found, rewards, context, answer_form))
                example = example or found
                clipped += reaches_out(found)
            update(done)
    notes, unscored = judge(scores, [term.name for term in rewards])
    problems = sorted([*problems, *unscored], key=lambda problem: problem.row)
    if not samples and not errors:
        notes.append("the file holds no row")
    if clipped:
        notes.append(f"gold boxes of {clipped} row(s) reach out of their image: are they in pixels of the file?")
    return Report(
        file=file.path,
        rows=len(samples) + len(errors),
        problems=tuple(problems),
        notes=tuple(notes),
        example=example,
        prompt_tokens=len(encode(example).ids) if encode and example else None,
    )


def reaches_out(loaded: Loaded) -> bool:
    """Whether a gold box is partly outside of its image."""
    gold = loaded.sample.gold
    boxes = [*gold.boxes, *(box for _, box in gold.track)]
    insides = [valid_box(box, loaded.media[0].frame.original)[0] for box in boxes]
    return any(inside and was_clipped(box, inside) for box, inside in zip(boxes, insides, strict=True))


def judge(scores: dict[int, dict[str, GoldScore]], names: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """(notes, problems) of what the rewards gave the gold of each row.

    A reward's best is the highest score that the gold of any row gets; a gold that gets less is a problem.
    """
    notes, problems = [], []
    for name in names:
        values = {row: given[name].value for row, given in scores.items()}
        best = max((value for value in values.values() if value is not None), default=None)
        if best is not None and best < 1 - SAME:
            notes.append(f"reward {name}: the gold scores {best:.3g} at most; is that its best?")
        for row, given in scores.items():
            value = values[row]
            if given[name].error:
                problems.append(Problem(row=row, kind=f"reward {name}", error=" ".join(given[name].error.split())))
            elif value is not None and best is not None and value < best - SAME:
                problems.append(
                    Problem(row=row, kind=f"reward {name}", error=f"the gold scores {value:.3g}, others' {best:.3g}")
                )
    for row, given in scores.items():
        if names and all(score.value is None and not score.error for score in given.values()):
            problems.append(Problem(row=row, kind="gold", error="no reward applies to the row"))
    return notes, problems


def configured_file(path: str, config: RunConfig | None) -> RowsFile:
    """How the configuration reads a file, where it names it."""
    sources: list[Any] = []
    if config is not None:
        for stage in config.stages:
            sources += [stage.rows, *([stage.validation.rows] if stage.validation else [])]
        sources += [config.evaluate.rows] if config.evaluate else []
    for source in sources:
        for file in () if isinstance(source, str) else source:
            if Path(file.path) == Path(path):
                return file
    return RowsFile(path=path)


def render(loaded: Loaded) -> Iterator[str]:
    """The messages of a row as the model is given them, a line or more each, with words for its media."""
    for message in loaded.sample.messages:
        yield f"{message.role}: {printable(_body(message, loaded.media)[:MAX_TEXT])}"
    gold = {key: value for key, value in asdict(loaded.sample.gold).items() if value not in (None, ())}
    yield f"gold: {gold}"


def printable(text: str) -> str:
    """Text that cannot steer a terminal."""
    return "".join(c if c.isprintable() or c.isspace() else ascii(c)[1:-1] for c in text)


def write_report(report: Report, json_file: Path | None) -> None:
    """Print what was found, and write all of it to `json_file`."""
    if report.example is not None:
        print(f"\n{report.example.sample.where}, as the model gets it:")
        print("\n".join(f"  {line}" for line in render(report.example)))
        print("" if report.prompt_tokens is None else f"  prompt: {report.prompt_tokens} tokens\n")
    for problem in report.problems[:SHOWN]:
        print(f"row {problem.row}: {problem.kind}: {printable(problem.error)}")
    if len(report.problems) > SHOWN:
        print(f"... and {len(report.problems) - SHOWN} more{'' if json_file else '; --json FILE lists them all'}")
    for note in report.notes:
        print(f"note: {note}")
    kinds = ", ".join(f"{kind} {count}" for kind, count in report.counts.items())
    print(f"{report.rows - report.bad} of {report.rows} rows are good" + (f"; problems: {kinds}" if kinds else ""))
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")


def _family(config: RunConfig) -> ModelFamily:
    """The model's family without its weights."""
    from transformers import AutoConfig, AutoProcessor

    from mmrl.models.load import find_kind

    own = AutoConfig.from_pretrained(config.model_path)
    kind = find_kind(config.model.family or own.model_type)
    processor = AutoProcessor.from_pretrained(config.model_path)
    return kind.family.from_config(getattr(own, "thinker_config", own), processor)


def _encoder(config: RunConfig, family: ModelFamily, image: Processor) -> Encode:
    """Encodes a row's prompt as a run does."""
    from mmrl.adapt.tools import build_tools
    from mmrl.rollout.runner import encode_prompt

    tools = build_tools(config.episode.tools, image, family)
    scripted = {step.tool for step in config.episode.script}
    return lambda loaded: encode_prompt(loaded, family, tools, scripted, config.episode.system)


def _load(sample: Sample, loader: MediaLoader, encode: Encode | None, path: str) -> Loaded | Problem:
    try:
        loaded = load_sample(sample, loader)
        if encode is not None:
            encode(loaded)
        return loaded
    except ValueError as error:
        return Problem(row=_number(sample.where, path), kind="model", error=str(error))
    except MediaError as error:
        return Problem(row=_number(sample.where, path), kind="media", error=str(error))
    except DataError as error:
        return Problem(row=_number(sample.where, path), kind="gold", error=str(error))


def _unreadable(error: str, path: str) -> Problem:
    where, _, text = error.removeprefix(f"{path} ").partition(": ")
    return Problem(row=_number(f"{path} {where}", path), kind="row", error=text)


def _number(where: str, path: str) -> int:
    return int(where.removeprefix(f"{path} row "))


def _body(message: Message, media: Sequence[Media]) -> str:
    return "".join(_medium(media[part.media]) if part.media is not None else part.text or "" for part in message.parts)


def _medium(medium: Media) -> str:
    (width, height), seen = medium.frame.original, medium.frame.seen
    parts = [f"{medium.kind} {medium.label}".strip()]
    if medium.kind != "audio":
        parts.append(f"{width} x {height} seen at {seen[0]} x {seen[1]}")
    if medium.kind == "video":
        parts.append(f"{len(medium.data)} frames")
    if medium.span is not None:
        parts.append(f"{medium.span[0]:g} s to {medium.span[1]:g} s")
    return f"<{', '.join(parts)}>"
