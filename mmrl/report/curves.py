"""Curves of a run's metrics, as SVG paths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 240, 84
"""Of a chart, SVG units."""
MAX_POINTS = 400
"""Points drawn in one chart; beyond it, neighbours are averaged."""
FIRST = (
    "validation/score",
    "reward",
    "score/",
    "loss",
    "entropy",
    "tool_calls",
    "engine_gap/mean",
    "tokens_per_second",
)
"""Metrics whose names start so come first, in this order."""
HIDDEN = ("stage", "step", "time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    name: str
    path: str
    """SVG path in a WIDTH x HEIGHT box."""
    low: float
    high: float
    last: float
    headline: bool
    """Whether the chart is shown at once."""


def curves(lines: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """One curve for each metric that the lines of a stage hold."""
    names = {name for line in lines for name in line if name not in HIDDEN}
    found = []
    for name in sorted(names, key=_order):
        points = [(line["step"], line[name]) for line in lines if _finite(line.get(name))]
        if points:
            found.append(_curve(name, thinned(points)))
    return found


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS points: means of equal runs of neighbours."""
    size = math.ceil(len(points) / MAX_POINTS)
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def _curve(name: str, points: Sequence[tuple[float, float]]) -> Curve:
    values = [value for _, value in points]
    low, high = min(values), max(values)
    left, right = points[0][0], points[-1][0]
    width, height = (right - left) or 1.0, (high - low) or 1.0
    spots = [
        f"{(step - left) / width * WIDTH:.1f},{HEIGHT - (value - low) / height * HEIGHT:.1f}" for step, value in points
    ]
    return Curve(
        name=name,
        path="M" + " L".join(spots),
        low=low,
        high=high,
        last=values[-1],
        headline=_order(name)[0] < len(FIRST),
    )


def _order(name: str) -> tuple[int, str]:
    place = next((number for number, start in enumerate(FIRST) if name.startswith(start)), len(FIRST))
    return place, name


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
