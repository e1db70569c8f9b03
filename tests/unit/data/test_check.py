"""A check finds, before a run, every row that the run would lose, and says how a row looks to the model."""

import json

import pytest
import yaml
from media_files import write_sound, write_video
from typer.testing import CliRunner

from mmrl.cli import app
from mmrl.config import RowsFile
from mmrl.data.check import check_file, judge
from mmrl.data.dry_run import GoldScore

REWARDS = [
    {"use": "mmrl.rewards.answer:Exact", "name": "accuracy"},
    {"use": "mmrl.rewards.grounding:BoxIoU", "name": "iou"},
    {"use": "mmrl.rewards.format:Format", "name": "format", "think": "required"},
]


@pytest.fixture
def check(tmp_path, monkeypatch):
    """check(file, *options) is the result of the command; found(result's JSON) stands in check.found."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        out = tmp_path / "found.json"
        result = CliRunner().invoke(app, ["data", "check", *map(str, arguments), "--json", str(out)])
        run.found = json.loads(out.read_text()) if out.exists() else None
        return result

    return run


@pytest.fixture
def write_config(tmp_path):
    def write(rewards=REWARDS, model="no/such/model", rows="rows.jsonl", **more):
        stage = {"type": "grpo", "rows": rows, "steps": 1, "prompts_per_step": 1, "group_size": 2}
        config = {
            "name": "t",
            "model": {"path": str(model)},
            "rewards": rewards,
            "stages": [stage | {"optimizer": {"lr": 1e-3}}],
            **more,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


def asked(content="<image>?", **columns):
    return {"messages": [{"role": "user", "content": content}], "images": ["a.png"], **columns}


def test_a_file_of_good_rows_ends_with_0(check, write_rows, write_png):
    write_png("a.png", 112, 56)
    result = check(write_rows(asked(answer="7", boxes=[[1, 2, 30, 40]]), asked(answer="8")))
    assert result.exit_code == 0
    assert "rows.jsonl: read as native (messages, answer, boxes, a user message last)" in result.output
    assert "user: <image a.png, 112 x 56 seen at 112 x 56>?" in result.output
    assert "gold: {'answer': '7', 'boxes': ((1.0, 2.0, 30.0, 40.0),)}" in result.output
    assert "2 of 2 rows are good" in result.output
    assert check.found["problems"] == []


def test_every_bad_row_is_found_with_its_number_and_kind(check, write_rows, write_png):
    write_png("a.png", 56, 56)
    rows = write_rows(
        asked(answer="7"),
        "{",
        asked("no placeholder"),
        asked(images=["gone.png"]),
        asked(boxes=[[90, 90, 99, 99]]),
        asked(answer="7"),
        asked(images=["../a.png"]),
    )
    result = check(rows)
    assert result.exit_code == 1
    assert [(problem["row"], problem["kind"]) for problem in check.found["problems"]] == [
        (1, "row"),
        (2, "row"),
        (3, "media"),
        (4, "gold"),
        (6, "media"),
    ]
    assert check.found["counts"] == {"row": 2, "media": 2, "gold": 1}
    assert (check.found["rows"], check.found["bad"]) == (7, 5)
    assert "row 3: media: image gone.png: cannot be read" in result.output
    assert "2 of 7 rows are good; problems: row 2, media 2, gold 1" in result.output


def test_only_the_first_problems_are_printed_and_all_are_written(check, write_rows):
    result = check(write_rows(*["{"] * 50))
    assert result.output.count(": row: ") == 20
    assert "... and 30 more" in result.output
    assert len(check.found["problems"]) == 50


def test_gold_that_the_rewards_cannot_use_is_found(check, write_rows, write_png, write_config):
    write_png("a.png", 56, 56)
    letter = {"use": "mmrl.rewards.answer:Letter", "name": "letter"}
    rows = write_rows(asked(answer="B"), asked(answer="a red bus"), asked(answer="(C)"), asked())
    result = check(rows, "--config", write_config(rewards=[letter]))
    assert result.exit_code == 1
    assert [(problem["row"], problem["kind"]) for problem in check.found["problems"]] == [
        (1, "reward letter"),
        (3, "gold"),
    ]
    assert "names no choice such as 'B'" in check.found["problems"][0]["error"]
    assert check.found["problems"][1]["error"] == "no reward applies to the row"


def test_perfect_answers_get_the_best_of_every_reward(check, write_rows, write_png, write_config):
    write_png("a.png", 300, 200)
    answered = {"use": "mmrl.rewards.grounding:BoxIoU", "name": "answered", "source": "answer"}
    rows = write_rows(
        asked(answer="7", boxes=[[10.25, 20, 290, 190.5]]), asked(answer="8"), asked(boxes=[[0, 0, 50, 60]])
    )
    result = check(rows, "--config", write_config(rewards=[*REWARDS, answered]))
    assert result.exit_code == 0, result.output
    assert check.found["notes"] == []


def test_perfect_answers_are_marked_as_the_episode_asks(check, write_rows, write_png, write_config):
    write_png("a.png", 300, 200)
    boxed = {"use": "mmrl.rewards.format:Format", "name": "format", "answer": "boxed"}
    rows = write_rows(asked(answer="7", boxes=[[10, 20, 290, 190]]), asked(answer="\\frac{1}{2}"))
    check(rows, "--config", write_config(rewards=[boxed], episode={"answer": "boxed"}))
    assert (check.found["problems"], check.found["notes"]) == ([], [])
    check(rows, "--config", write_config(rewards=[boxed]))
    assert check.found["notes"] == ["reward format: the gold scores 0 at most; is that its best?"]


def test_a_gold_that_scores_less_than_others_is_found(check, write_rows, write_png, write_config, tmp_path):
    write_png("a.png", 56, 56)
    rows = write_rows(asked(answer="7"), asked(answer="x" * 3000), asked(answer="8"))  # longer than answers may be
    result = check(rows, "--config", write_config(rewards=REWARDS[:1]))
    assert result.exit_code == 1
    assert check.found["problems"] == [{"row": 1, "kind": "reward accuracy", "error": "the gold scores 0, others' 1"}]


def test_a_reward_that_fails_is_a_problem_of_the_row(check, write_rows, write_png, write_config, tmp_path):
    write_png("a.png", 56, 56)
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass\nclass Broken:\n"
        "    async def score(self, group, context):\n        raise KeyError('level')\n"
    )
    config = write_config(rewards=[{"use": str(tmp_path / "mine.py:Broken"), "name": "mine"}])
    result = check(write_rows(asked(answer="7")), "--config", config)
    assert result.exit_code == 1
    assert check.found["problems"] == [{"row": 0, "kind": "reward mine", "error": "KeyError: 'level'"}]


def test_videos_and_sounds_are_loaded_and_gold_times_compared(check, write_rows, tmp_path):
    write_video(tmp_path / "v.mp4", numbers=range(40), audio=True)  # two seconds
    write_sound(tmp_path / "a.mp4", seconds=1.0)
    (tmp_path / "torn.mp4").write_bytes(b"no video at all")

    def video(**columns):
        return {"messages": [{"role": "user", "content": "<video>When?"}], "videos": ["v.mp4"], **columns}

    rows = write_rows(
        video(spans=[[0.5, 1.5]], track=[[1.0, [10, 10, 50, 50]]], use_audio_in_video=True),
        video(spans=[[1, 9]]),
        video(track=[[1.0, [900, 10, 950, 50]]]),
        video(videos=["torn.mp4"]),
        {"messages": [{"role": "user", "content": "<audio>?"}], "audios": ["a.mp4"], "spans": [[0, 0.5]]},
        {"messages": [{"role": "user", "content": "<audio>?"}], "audios": ["a.mp4"], "boxes": [[0, 0, 5, 5]]},
    )
    result = check(rows)
    assert [(problem["row"], problem["kind"]) for problem in check.found["problems"]] == [
        (1, "gold"),
        (2, "gold"),
        (3, "media"),
        (5, "gold"),
    ]
    errors = [problem["error"] for problem in check.found["problems"]]
    assert errors[0].startswith("spans.0: gold 1 s to 9 s lies outside the medium's 0 s to 2")
    assert errors[1] == "track.0: unusable gold: the box lies outside the image of (192, 128); correct the row"
    assert errors[3] == "boxes.0: the row has a gold box but no image or video first"
    assert "192 x 128 seen at" in result.output


def test_the_sound_of_a_video_follows_it(write_rows, tmp_path):
    write_video(tmp_path / "v.mp4", numbers=range(40), audio=True)
    row = {"messages": [{"role": "user", "content": "<video>?"}], "videos": ["v.mp4"], "use_audio_in_video": True}
    report = check_file(RowsFile(path=str(write_rows(row))), None)
    assert report.problems == ()
    assert [medium.kind for medium in report.example.media] == ["video", "audio"]
    assert report.example.media[1].span[1] == pytest.approx(2.0, abs=0.1)


def test_span_and_track_rewards_are_tried_with_the_gold(check, write_rows, write_config, tmp_path):
    write_video(tmp_path / "v.mp4", numbers=range(40))
    rewards = [
        {"use": "mmrl.rewards.temporal:SpanIoU", "name": "span"},
        {"use": "mmrl.rewards.temporal:TrackIoU", "name": "track"},
    ]
    ask = {"messages": [{"role": "user", "content": "<video>When?"}], "videos": ["v.mp4"]}
    rows = write_rows({**ask, "spans": [[0.5, 1.5]]}, {**ask, "track": [[0.5, [1, 2, 30, 40]], [1.0, [5, 2, 34, 40]]]})
    result = check(rows, "--config", write_config(rewards=rewards))
    assert result.exit_code == 0, result.output
    assert check.found["notes"] == []


def test_a_configured_file_is_read_as_it_is_configured(check, write_rows, write_png, write_config, tmp_path):
    (tmp_path / "media").mkdir()
    write_png("media/a.png")
    rows = write_rows({"prompt": "?", "answer": "7", "images": ["a.png"]})
    source = {"path": str(rows), "format": "trl", "media_root": str(tmp_path / "media")}
    result = check(rows, "--config", write_config(rewards=REWARDS[:1], rows=[source]))
    assert result.exit_code == 0, result.output
    assert "read as trl (as configured)" in result.output


def test_format_and_folder_may_be_given(check, write_rows, write_png, tmp_path):
    (tmp_path / "media").mkdir()
    write_png("media/a.png")
    rows = write_rows({"prompt": "<image>?", "answer": "7", "images": ["a.png"]})
    assert check(rows, "--format", "trl", "--media-root", tmp_path / "media").exit_code == 0
    assert check(rows, "--format", "easyr1").exit_code == 1


def test_the_prompt_of_a_local_model_is_counted(check, write_rows, write_png, write_config, model_dir, checkpoint):
    write_png("a.png", 56, 56)
    rows = write_rows(asked(answer="7"))
    plain = {"rewards": REWARDS[:1], "model": model_dir}
    result = check(rows, "--config", write_config(**plain))
    from mmrl.data.check import check_file
    from mmrl.processors.image import Image

    example = check_file(RowsFile(path=str(rows)), None).example
    assert example.media[0].key == Image().load(example.sample.media[0]).key
    count = len(checkpoint.family.encode_prompt(example.sample.messages, example.media, []).ids)
    assert f"prompt: {count} tokens" in result.output
    more = write_config(**plain, episode={"system": "Look.", "tools": [{"use": "mmrl.tools.zoom:Zoom"}]})
    longer = check(rows, "--config", more).output.partition("prompt: ")[2].split(" ")[0]
    assert int(longer) > count + 20
    step = {"tool": "image_zoom_in_tool", "then": "<media>", "otherwise": "<media>"}
    scripted = write_config(**plain, episode={"tools": [{"use": "mmrl.tools.zoom:Zoom"}], "script": [step]})
    assert f"prompt: {count} tokens" in check(rows, "--config", scripted).output


def test_a_row_that_the_configured_model_cannot_be_given_is_a_problem(
    check, write_rows, write_png, write_config, model_dir, tmp_path
):
    """A Qwen2.5-VL takes no audio."""
    import soundfile

    write_png("a.png", 56, 56)
    soundfile.write(tmp_path / "a.wav", [0.1] * 16000, 16000)
    heard = {"messages": [{"role": "user", "content": "<audio>What?"}], "audios": ["a.wav"], "answer": "7"}
    rows = write_rows(asked(answer="7"), heard)
    assert check(rows).exit_code == 0
    result = check(rows, "--config", write_config(rewards=REWARDS[:1], model=model_dir))
    assert result.exit_code == 1
    assert "row 1: model: a.wav: this model takes no audio" in result.output


def test_gold_that_reaches_out_of_its_image_is_noted(check, write_rows, write_png):
    write_png("a.png", 56, 56)
    result = check(write_rows(asked(boxes=[[10, 10, 600, 50]]), asked(boxes=[[0, 0, 56, 56]])))
    assert result.exit_code == 0
    assert "note: gold boxes of 1 row(s) reach out of their image" in result.output


def test_an_empty_file_ends_with_1(check, write_rows):
    result = check(write_rows())
    assert result.exit_code == 1
    assert "the file holds no row" in result.output


def test_a_best_below_1_is_noted_and_no_problem():
    scores = {row: {"brief": GoldScore(value=0.5)} for row in range(3)}
    notes, problems = judge(scores, ["brief"])
    assert notes == ["reward brief: the gold scores 0.5 at most; is that its best?"]
    assert problems == []


def test_a_row_cannot_steer_the_terminal(check, write_rows, write_png):
    write_png("a.png")
    result = check(write_rows(asked("<image>\x1b[2J\x07?", answer="7")))
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert r">\x1b[2J\x07?" in result.output
