"""The report of a run: one self-contained page with its result, its curves and what the model did.

Everything that a model or a data set wrote is escaped by the template; the page runs no script and loads nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from mmrl.report.curves import Curve, curves
from mmrl.report.exhibits import Carried, Exhibit, Picture, exhibit
from mmrl.report.lines import Line, complete
from mmrl.report.store import read_lines, write_atomic
from mmrl.report.summary import (
    COLUMN_TITLES,
    COST_TITLE,
    cost_columns,
    cost_rows,
    summary_columns,
    summary_rows,
    summary_title,
)

PAD_RUN = re.compile(r"(?:<\|(?:image|video|vision|audio)_pad\|>)+")
FRAME_RUN = re.compile(r"((?:<[0-9.]{1,12} seconds>)?<\|vision_start\|><\|vision_end\|>){4,}")
"""A video that is written frame by frame, without its placeholders."""
PART_TITLES = {
    "after": "Held-out rows, after training",
    "before": "Held-out rows, before",
    "tools": "Held-out rows",
    "no_tools": "Held-out rows, without tools",
    "rollout": "Rollouts",
    "train": "Training, latest steps",
}


def write_report(run_dir: Path, max_trajectories: int = 40) -> Path:
    """Write `run_dir`/report.html from the files of the run, and return its path.

    Args:
        max_trajectories: shown of each file of rollouts; more only where a test-time strategy's rungs would be parted.
    """
    template = Path(__file__).with_name("template.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    config = run_dir / "config.yaml"
    carried = Carried(run_dir)
    parts = [(PART_TITLES.get(name, name), shelves) for name, shelves in _parts(run_dir, max_trajectories, carried)]
    page = environment.from_string(template).render(
        name=run_dir.resolve().name,
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        tables=_tables(run_dir),
        stages=_stages(read_lines(run_dir / "metrics.jsonl")),
        parts=parts,
        pictures=carried.pictures,
    )
    path = run_dir / "report.html"
    write_atomic(path, page)
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A segment: who wrote it, its text, and the media that came with it."""

    kind: str
    text: str
    note: str
    pictures: tuple[Picture, ...]
    wide: tuple[Exhibit, ...]
    """Films and sounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One trajectory."""

    line: Line
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """Trajectories that stand together: a sample's on one rung of a test-time strategy, or any one by itself."""

    cards: tuple[Card, ...]
    rung: Line | None = None
    last: bool = False
    """No further rung of the sample follows."""


def _tables(run_dir: Path) -> list[Table]:
    path = run_dir / "summary.json"
    if not path.exists():
        return []
    values = json.loads(path.read_text(encoding="utf-8"))
    names = summary_columns(values)
    result = Table(
        title=summary_title(values),
        columns=[COLUMN_TITLES.get(name, name) for name in names],
        rows=summary_rows(values),
    )
    cost = Table(title=COST_TITLE, columns=cost_columns(values), rows=cost_rows(values))
    return [table for table in (result, cost) if table.rows]


def _stages(lines: Iterable[Line]) -> dict[str, list[Curve]]:
    stages: dict[str, list[Line]] = {}
    for line in lines:
        stages.setdefault(line["stage"], []).append(line)
    return {stage: curves(found) for stage, found in stages.items()}


def _parts(run_dir: Path, limit: int, carried: Carried) -> Iterator[tuple[str, list[Shelf]]]:
    """(name, trajectories) of each file of rollouts; the stream gives its latest ones."""
    found = {path.stem: list(read_lines(path)) for path in sorted((run_dir / "rollouts").glob("*.jsonl"))}
    stream = found.pop("stream", [])
    kept = {name: lines[: _between_ladders(lines, limit, +1)] for name, lines in found.items()}
    if stream:
        kept[stream[-1]["phase"]] = stream[_between_ladders(stream, max(0, len(stream) - limit), -1) :]
    others = [name for name in kept if name not in PART_TITLES]
    for name in [*(name for name in PART_TITLES if name in kept), *others]:
        yield name, list(_shelves([complete(line) for line in kept[name]], carried))


def _between_ladders(lines: Sequence[Line], place: int, step: int) -> int:
    """The nearest place, on from `place`, that does not cut the rungs of a sample in two."""
    while 0 < place < len(lines) and _ladder(lines[place]) and _ladder(lines[place - 1]) == _ladder(lines[place]):
        place += step
    return place


def _ladder(line: Line) -> tuple[Any, Any] | None:
    """What the lines of a sample's rungs have in common; None for a line that is on no rung."""
    return (line["sample"], line.get("step")) if line.get("rung") else None


def _shelves(lines: Sequence[Line], carried: Carried) -> Iterator[Shelf]:
    """Lines of a sample that carry rungs, by rung in order, where the sample first appears; others one by one."""
    ladders: dict[Any, list[Line]] = {}
    for place, line in enumerate(lines):
        ladders.setdefault(_ladder(line) or place, []).append(line)
    for ladder in ladders.values():
        rungs: dict[float, list[Line]] = {}
        for line in sorted(ladder, key=_number):
            rungs.setdefault(_number(line), []).append(line)
        for number, rung in rungs.items():
            cards = tuple(_card(line, carried) for line in rung)
            yield Shelf(cards=cards, rung=rung[0]["rung"], last=number == max(rungs))


def _number(line: Line) -> float:
    """Of the rung."""
    return float(line["rung"]["number"]) if line["rung"] else 0.0


def _card(line: Line, carried: Carried) -> Card:
    return Card(line=line, blocks=tuple(_block(line, segment, carried) for segment in line["segments"]))


def _block(line: Line, segment: Line, carried: Carried) -> Block:
    shown = [exhibit(line, key, carried) for key in dict.fromkeys(segment["media"])]
    return Block(
        kind=segment["source"],
        text=_readable(segment["text"]),
        note=_note(segment),
        pictures=tuple(one for one in shown if isinstance(one, Picture)),
        wide=tuple(one for one in shown if not isinstance(one, Picture)),
    )


def _readable(text: str) -> str:
    """Without the long runs in which media are written."""
    text = PAD_RUN.sub("<|image_pad|>…", text)
    return FRAME_RUN.sub(
        lambda run: f"<|vision_start|>… {run[0].count('<|vision_end|>')} frames …<|vision_end|>", text
    ).strip("\n")


def _note(segment: Line) -> str:
    note = f"{segment['num_tokens']} tokens"
    if segment["mean_logprob"] is not None:
        note += f", mean log-prob {segment['mean_logprob']:.3f}"
    return note
