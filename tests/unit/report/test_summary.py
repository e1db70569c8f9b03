import io

from rich.console import Console

from mmrl.report.summary import cost_columns, cost_rows, summary_table, summary_title

STRATEGIES = {
    "one look": {"accuracy": 0.71, "frames": 64.0, "tokens": 9210.4},
    "[bold]ladder": {"accuracy": 0.735, "frames": 21.34},
}


def printed(summary):
    file = io.StringIO()
    Console(width=100, file=file).print(summary_table(summary))
    return file.getvalue()


def test_strategies_have_a_row_each_with_what_they_cost():
    assert cost_columns({"test_time": STRATEGIES}) == ["accuracy", "frames", "tokens"]
    assert cost_rows({"test_time": STRATEGIES}) == [
        ("one look", "71.0 %", "64.0", "9,210"),
        ("[bold]ladder", "73.5 %", "21.3", "–"),
    ]


def test_the_terminal_shows_both_tables_and_takes_no_name_for_markup():
    text = printed({"rows": 10, "tools": {"accuracy": 0.5}, "test_time": STRATEGIES})
    assert "10 held-out rows" in text
    assert "with tools" in text
    assert "[bold]ladder" in text


def test_a_table_without_rows_is_not_shown():
    assert "test-time" not in printed({"rows": 10, "tools": {"accuracy": 0.5}})
    assert "held-out" not in printed({"test_time": STRATEGIES})
    assert summary_title({}) == "held-out rows"
