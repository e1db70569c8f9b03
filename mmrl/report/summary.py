"""The result of a run as a small table: how well the held-out rows are answered before and after training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

TITLES = {"before": "before RL", "after": "after RL", "tools": "with tools", "no_tools": "without tools"}
"""Row titles, by the evaluation's name in summary.json."""
COLUMN_TITLES = {"format": "valid format", "tool_calls": "calls a tool", "mean_iou": "mean IoU"}


def summary_table(summary: Mapping[str, Any]) -> Table:
    """`summary` is what a run's summary.json holds."""
    table = Table("", title=summary_title(summary))
    for column in summary_columns(summary):
        table.add_column(COLUMN_TITLES.get(column, column), justify="right")
    for row in summary_rows(summary):
        table.add_row(*row)
    return table


def summary_title(summary: Mapping[str, Any]) -> str:
    rows = f"{summary['rows']} held-out rows"
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


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if column == "mean_iou" else f"{100 * value:.1f} %"
