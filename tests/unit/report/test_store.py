import json

import pytest

from mmrl.errors import MmrlError
from mmrl.report.store import RunStore, append_line, read_lines, write_atomic


def test_a_second_writer_is_refused_until_the_first_closes(tmp_path):
    first = RunStore(tmp_path)
    with pytest.raises(MmrlError, match="another process writes this run"):
        RunStore(tmp_path)
    first.close()
    RunStore(tmp_path).close()


def test_a_torn_last_line_is_ignored_and_cut_off_by_rewinding(tmp_path):
    store = RunStore(tmp_path)
    for step in (1, 2, 3):
        store.log_metrics("grpo", step, {"reward": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "grpo", "st')
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    store.rewind(lambda line: line["step"] <= 2)
    store.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    append_line(tmp_path / "x.jsonl", {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": float("-inf")}})
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_atomic(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_clearing_keeps_only_the_lock(tmp_path):
    store = RunStore(tmp_path)
    store.log_metrics("grpo", 1, {"reward": 0.5})
    store.clear()
    store.close()
    assert {path.name for path in tmp_path.iterdir()} == {"run.lock", "rollouts", "media", "checkpoints"}
