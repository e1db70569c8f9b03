"""The result of a run as a small table: how well the held-out rows are answered before and after RL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

COLUMNS = ("accuracy", "valid format", "calls the tool", "mean IoU")
_KEYS = ("accuracy", "format", "tool_calls", "mean_iou")
_ROWS = {"before": "before RL", "after": "after RL", "no_tools": "after RL, without tools"}


def summary_table(summary: Mapping[str, Any]) -> Table:
    """`summary` is what a run's summary.json holds."""
    table = Table("", title=summary_title(summary))
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in summary_rows(summary):
        table.add_row(*row)
    return table


def summary_title(summary: Mapping[str, Any]) -> str:
    minutes, seconds = divmod(round(summary["train_seconds"]), 60)
    trained = f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
    return f"{summary['rows']} held-out rows, trained for {trained}"


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(name, cell, ...) of each evaluation that the summary has."""
    return [
        (name, *(_cell(column, summary[part].get(column)) for column in _KEYS))
        for part, name in _ROWS.items()
        if summary.get(part)
    ]


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if column == "mean_iou" else f"{100 * value:.1f} %"
