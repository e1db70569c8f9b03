"""The report of a run: one self-contained page with its result, its curves and what the model did.

Everything that a model or a data set wrote is escaped by the template; the page runs no script and loads nothing.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from mmrl.report.curves import Curve, curves
from mmrl.report.store import read_lines, write_atomic
from mmrl.report.summary import COLUMN_TITLES, summary_columns, summary_rows, summary_title
from mmrl.types import Box, CoordinateFrame

Line = Mapping[str, Any]
PICTURE_SIDE = 240
"""Longest side of a picture on the page, CSS pixels; smaller pictures are enlarged."""
PAD_RUN = re.compile(r"(?:<\|(?:image|video|vision)_pad\|>)+")
PART_TITLES = {
    "after": "Held-out rows, after training",
    "before": "Held-out rows, before",
    "tools": "Held-out rows",
    "no_tools": "Held-out rows, without tools",
    "rollout": "Rollouts",
    "train": "Training, latest steps",
}


def write_report(run_dir: Path, max_trajectories: int = 40) -> Path:
    """Write `run_dir`/report.html from the files of the run, and return its path."""
    template = Path(__file__).with_name("template.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    config = run_dir / "config.yaml"
    page = environment.from_string(template).render(
        name=run_dir.resolve().name,
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        summary=_summary(run_dir),
        stages=_stages(read_lines(run_dir / "metrics.jsonl")),
        parts=[(PART_TITLES.get(name, name), cards) for name, cards in _parts(run_dir, max_trajectories)],
    )
    path = run_dir / "report.html"
    write_atomic(path, page)
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A box on a picture, in shares of its sides."""

    kind: str
    """Either gold or asked."""
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A medium as the model saw it, with the boxes that belong on it."""

    source: str
    """data: URL of the PNG."""
    title: str
    width: int
    height: int
    """CSS pixels."""
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A segment: who wrote it, its text, and the pictures that came with it."""

    kind: str
    text: str
    note: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One trajectory."""

    line: Line
    blocks: tuple[Block, ...]


def _summary(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / "summary.json"
    if not path.exists():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    columns = [COLUMN_TITLES.get(name, name) for name in summary_columns(values)]
    return {"title": summary_title(values), "columns": columns, "rows": summary_rows(values)}


def _stages(lines: Iterable[Line]) -> dict[str, list[Curve]]:
    stages: dict[str, list[Line]] = {}
    for line in lines:
        stages.setdefault(line["stage"], []).append(line)
    return {stage: curves(found) for stage, found in stages.items()}


def _parts(run_dir: Path, limit: int) -> Iterator[tuple[str, list[Card]]]:
    """(name, trajectories) of each file of rollouts; the stream gives its latest ones."""
    found = {path.stem: list(read_lines(path)) for path in sorted((run_dir / "rollouts").glob("*.jsonl"))}
    stream = found.pop("stream", [])
    if stream:
        found[stream[-1]["phase"]] = stream[-limit:]
    order = [name for name in PART_TITLES if name in found]
    for name in order:
        yield name, [_card(run_dir, line) for line in found[name][:limit]]


def _card(run_dir: Path, line: Line) -> Card:
    blocks = tuple(
        Block(
            kind=segment["source"],
            text=PAD_RUN.sub("<|image_pad|>…", segment["text"]).strip("\n"),
            note=_note(segment),
            pictures=tuple(_picture(run_dir, line, key) for key in segment["media"]),
        )
        for segment in line["segments"]
    )
    return Card(line=line, blocks=blocks)


def _note(segment: Line) -> str:
    note = f"{segment['num_tokens']} tokens"
    if segment["mean_logprob"] is not None:
        note += f", mean log-prob {segment['mean_logprob']:.3f}"
    return note


def _picture(run_dir: Path, line: Line, key: str) -> Picture:
    medium = line["media"][key]
    width, height = medium["seen"]
    zoom = PICTURE_SIDE / max(width, height)
    return Picture(
        source=_data_url(run_dir / medium["file"]),
        title=f"{medium['label']}, shown at {width} x {height} (original {_size(medium['original'])})",
        width=round(width * zoom),
        height=round(height * zoom),
        marks=tuple(_marks(line, key)),
    )


def _marks(line: Line, key: str) -> Iterator[Mark]:
    """Gold boxes on every picture of image 0's own pixels; each asked box on the picture it was read from."""
    medium = line["media"][key]
    frame = CoordinateFrame(
        original=tuple(medium["original"]),
        seen=tuple(medium["seen"]),
        offset=tuple(medium["offset"]),
        scale=tuple(medium["scale"]),
    )
    if root_of(line["media"], key) == first_medium(line):
        for box in line["gold"]["boxes"]:
            yield from _mark("gold", box, frame)
    for turn in line["turns"]:
        for region in turn["regions"]:
            if region["box"] is not None and region["on"] == key:
                yield from _mark("asked", region["box"], frame)


def root_of(media: Mapping[str, Line], key: str) -> str:
    """Key of the medium that a crop was cut from, through any number of crops."""
    while media[key]["parent"] in media:
        key = media[key]["parent"]
    return key


def first_medium(line: Line) -> str | None:
    return next((key for segment in line["segments"] for key in segment["media"]), None)


def _mark(kind: str, box: Sequence[float], frame: CoordinateFrame) -> Iterator[Mark]:
    """The part of a box of original pixels that lies on the picture."""
    width, height = frame.seen
    x1, y1, x2, y2 = frame.to_seen(_as_box(box))
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if x1 < x2 and y1 < y2:
        yield Mark(kind=kind, left=x1 / width, top=y1 / height, width=(x2 - x1) / width, height=(y2 - y1) / height)


def _as_box(values: Sequence[float]) -> Box:
    x1, y1, x2, y2 = values
    return (x1, y1, x2, y2)


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() if path.exists() else ""


def _size(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"
