"""Progress of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich import progress
from rich.console import Console

PLAIN_SECONDS = 10.0
"""Least time between two plain lines of a stage."""


class Progress:
    """Shows the stage, its steps, the latest values and the time that is left.

    Example: with Progress() as shown: shown.stage("grpo", 300); shown.update(1, reward=0.2)
    """

    def __init__(self) -> None:
        self.console = Console()
        self.live = self.console.is_terminal
        self.bars = progress.Progress(
            progress.TextColumn("[bold]{task.description}", markup=True),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[values]}", markup=False),
            progress.TextColumn("{task.fields[eta]}", style="cyan", markup=False),
            console=self.console,
            disable=not self.live,
        )
        self._stage: _Stage | None = None

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_stage()
        self.bars.stop()

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Enter a stage of `total` steps, of which `done` are finished already."""
        self._end_stage()
        task = self.bars.add_task(name, total=total, completed=done, values="", eta="")
        self._stage = _Stage(name, total, done, task)

    def update(self, step: int, **values: float) -> None:
        """`step` steps of the stage are finished; `values` are those of the latest one."""
        stage = self._stage
        assert stage is not None, "call stage() first"
        stage.update(step, values)
        self.bars.update(stage.task, completed=step, values=stage.values, eta=stage.eta())
        due = time.monotonic() - stage.printed_at >= PLAIN_SECONDS
        if not self.live and (due or step == stage.steps):
            self._print_stage(stage)

    def print(self, line: str) -> None:
        """A line above the bars."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _end_stage(self) -> None:
        if self._stage is not None and not self.live and self._stage.printed_step != self._stage.step:
            self._print_stage(self._stage)
        self._stage = None

    def _print_stage(self, stage: _Stage) -> None:
        stage.printed_at, stage.printed_step = time.monotonic(), stage.step
        fields = (f"{stage.name} {stage.step}/{stage.steps}", stage.values, stage.eta())
        self.print("  ".join(field for field in fields if field))


class _Stage:
    """Where a stage is, and the words for it."""

    def __init__(self, name: str, steps: int, done: int, task: progress.TaskID) -> None:
        self.name, self.steps, self.done, self.task = name, steps, done, task
        self.step = self.printed_step = done
        self.start = time.monotonic()
        self.printed_at = self.start
        self.values = ""

    def update(self, step: int, values: Mapping[str, float]) -> None:
        self.step = step
        self.values = "  ".join(f"{name} {_number(value)}" for name, value in values.items())

    def eta(self) -> str:
        """Time left at the pace since the stage was entered; at its end, the time it took."""
        elapsed = time.monotonic() - self.start
        if self.step >= self.steps:
            return f"took {_clock(elapsed)}"
        if self.step <= self.done:
            return ""
        return f"ETA {_clock(elapsed / (self.step - self.done) * (self.steps - self.step))}"


def _number(value: float) -> str:
    """Three digits behind the point for small values, none for large ones."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
