import json
from dataclasses import replace

import pytest

from mmrl.errors import MmrlError
from mmrl.report.store import RunStore, append_line, read_lines, write_atomic
from mmrl.types import Gold, Region


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


def test_a_line_holds_gold_regions_and_the_rung(log, tmp_path, make_group, make_video):
    track = ((1.0, (0.0, 0.0, 8.0, 8.0)),)
    gold = Gold(answer="7", points=((1.0, 2.0),), spans=((0.0, 2.0),), track=track)
    looks = [((Region(on="v", span=(1.0, 3.0), times=(2.0,)),), [])]
    log(make_group([make_video("v", [0, 4], (0.0, 8.0))], *looks, gold=gold), rung={"number": 1, "title": "2 frames"})
    (line,) = read_lines(tmp_path / "rollouts" / "stream.jsonl")
    assert line["gold"] == {
        "answer": "7",
        "boxes": [],
        "points": [[1.0, 2.0]],
        "spans": [[0.0, 2.0]],
        "track": [[1.0, [0.0, 0.0, 8.0, 8.0]]],
    }
    assert line["turns"][0]["regions"] == [{"on": "v", "box": None, "span": [1.0, 3.0], "times": [2.0]}]
    assert line["rung"] == {"number": 1, "title": "2 frames"}
    assert (line["media"]["v"]["kind"], line["media"]["v"]["span"]) == ("video", [0.0, 8.0])


def test_a_video_that_is_written_frame_by_frame_is_one_medium_of_its_segment(
    log, page, tmp_path, make_group, make_video
):
    group = make_group([make_video("v", [0, 4], (0.0, 8.0))])
    (one,) = group.trajectories
    prompt = one.segments[0]
    spread = replace(prompt, spans=(prompt.spans[0], replace(prompt.spans[0], start=1, offset=1)))
    log(replace(group, trajectories=(replace(one, segments=(spread, *one.segments[1:])),)))
    (line,) = read_lines(tmp_path / "rollouts" / "stream.jsonl")
    assert line["segments"][0]["media"] == ["v"]
    assert "rung" not in line
    assert len(page().pictures) == 2
