"""The result of a run as a small table: how well the held-out rows are answered before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

TITLES = {"before": "before RL", "after": "after RL", "tools": "with tools", "no_tools": "without tools"}
"""Row titles, by the evaluation's name in summary.json."""
COLUMN_TITLES = {"format": "valid format", "tool_calls": "calls a tool", "mean_iou": "mean IoU"}
COST_TITLE = "test-time strategies: accuracy against cost of a row"


def summary_table(summary: Mapping[str, Any]) -> RenderableType:
    """`summary` is what a run's summary.json holds."""
    columns = [COLUMN_TITLES.get(column, column) for column in summary_columns(summary)]
    tables = [
        _table(summary_title(summary), columns, summary_rows(summary)),
        _table(COST_TITLE, cost_columns(summary), cost_rows(summary)),
    ]
    return Group(*(table for table in tables if table.row_count))


def _table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table("", title=title)
    for column in columns:
        table.add_column(escape(column), justify="right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def summary_title(summary: Mapping[str, Any]) -> str:
    rows = f"{summary['rows']} held-out rows" if "rows" in summary else "held-out rows"
    if "train_seconds" not in summary:
        return rows
    minutes, seconds = divmod(round(summary["train_seconds"]), 60)
    return f"{rows}, trained for {minutes} min {seconds:02} s" if minutes else f"{rows}, trained for {seconds} s"


def summary_columns(summary: Mapping[str, Any]) -> list[str]:
    """Names of what was measured, in order."""
    return list(dict.fromkeys(column for part in TITLES for column in summary.get(part, {})))


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(title, cell, ...) of each evaluation that the summary has."""
    columns = summary_columns(summary)
    return [
        (title, *(_cell(column, summary[part].get(column)) for column in columns))
        for part, title in TITLES.items()
        if part in summary
    ]


def cost_columns(summary: Mapping[str, Any]) -> list[str]:
    """What was measured of test-time strategies, in order."""
    return list(dict.fromkeys(column for values in summary.get("test_time", {}).values() for column in values))


def cost_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(name, cell, ...) of each test-time strategy that the summary has."""
    columns = cost_columns(summary)
    return [
        (name, *(_cost(column, values.get(column)) for column in columns))
        for name, values in summary.get("test_time", {}).items()
    ]


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if column == "mean_iou" else f"{100 * value:.1f} %"


def _cost(column: str, value: float | None) -> str:
    """Shares in percent; frames and tokens as numbers."""
    if value is None or column == "accuracy":
        return _cell(column, value)
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
