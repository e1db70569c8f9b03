"""The report of a run: one self-contained page with its result, its curves and what the model did.

Everything a model or a data set wrote is escaped by the template; the page runs no script and loads nothing.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from mmrl.report.store import read_lines, write_atomic
from mmrl.report.summary import COLUMNS, summary_rows, summary_title
from mmrl.types import Box, CoordinateFrame, Size

Line = Mapping[str, Any]
HEADLINES = ("validation/", "reward", "score/", "tool_calls", "loss", "entropy")
"""Metrics whose names start so are shown at once, the others on request."""
CHART: Size = (240, 84)
MAX_POINTS = 400
"""Points drawn in one chart."""
PICTURE_WIDTHS = {"prompt": 320, "observation": 200}
"""Least width of a picture on the page, CSS pixels, by the source of the segment it came with."""
MAX_PICTURE = 480
"""Largest side of a picture on the page, CSS pixels."""


def write_report(run_dir: Path, max_trajectories: int = 40) -> Path:
    """Write `run_dir`/report.html from the files of the run, and return its path."""
    template = Path(__file__).with_name("template.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        name=run_dir.resolve().name,
        config=_read_text(run_dir / "config.yaml"),
        summary=_summary(run_dir),
        stages=curves(read_lines(run_dir / "metrics.jsonl")),
        chart=CHART,
        sections=_sections(run_dir, max_trajectories),
    )
    path = run_dir / "report.html"
    write_atomic(path, page)
    return path


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _summary(run_dir: Path) -> dict[str, Any] | None:
    values = next(read_lines(run_dir / "summary.json"), None)
    if values is None:
        return None
    return {"title": summary_title(values), "columns": COLUMNS, "rows": summary_rows(values)}
