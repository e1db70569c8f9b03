"""Off a terminal, progress is plain lines that a log can hold."""

import pytest

from mmrl.report import progress
from mmrl.report.progress import Progress
from mmrl.report.summary import summary_columns, summary_rows, summary_title


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_stage_prints_now_and_then_and_at_its_end(clock, capsys):
    with Progress() as shown:
        shown.stage("grpo", 100)
        for step in range(1, 101):
            clock[0] += 0.5
            shown.update(step, reward=0.25, tokens_per_second=12345.6)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "grpo 20/100  reward 0.250  tokens_per_second 12,346  ETA 0:40"
    assert lines[-1] == "grpo 100/100  reward 0.250  tokens_per_second 12,346  took 0:50"
    assert len(lines) == 5


def test_a_resumed_stage_counts_its_time_from_where_it_went_on(clock, capsys):
    with Progress() as shown:
        shown.stage("grpo", 100, done=80)
        clock[0] += 10
        shown.update(90)
    assert capsys.readouterr().out.splitlines() == ["grpo 90/100  ETA 0:10"]


def test_what_a_row_wrote_is_not_taken_for_markup(capsys):
    with Progress() as shown:
        shown.print("skipped: [bold]row 3[/bold] [link=x]")
    assert capsys.readouterr().out == "skipped: [bold]row 3[/bold] [link=x]\n"


def test_the_summary_has_a_row_for_each_evaluation_and_a_dash_for_what_it_lacks():
    values = {
        "rows": 1000,
        "train_seconds": 61.4,
        "before": {"accuracy": 0.25, "mean_iou": 0.5},
        "after": {"accuracy": 0.7, "mean_iou": 0.9876},
        "no_tools": {"accuracy": 0.1},
    }
    assert summary_title(values) == "1000 held-out rows, trained for 1 min 01 s"
    assert summary_columns(values) == ["accuracy", "mean_iou"]
    assert summary_rows(values) == [
        ("before RL", "25.0 %", "0.500"),
        ("after RL", "70.0 %", "0.988"),
        ("without tools", "10.0 %", "–"),
    ]
