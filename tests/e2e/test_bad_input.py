"""Unusable rows cost themselves, one clear line each; the run goes on without them."""

import json
import shutil

import pytest

from mmrl.errors import DataError, MmrlError
from mmrl.train.run import train

SHORT = ("stages.0.steps=1", "stages.1.steps=1", "stages.1.prompts_per_step=2", "evaluate.limit=4")


@pytest.fixture
def spoil(demo_rows):
    """spoil(name, changes) is a file of the training rows in which the numbered ones are changed."""

    def make(name, changes):
        lines = [json.dumps(row | changes.get(number, {})) for number, row in enumerate(demo_rows("train"))]
        (demo_rows.folder / name).write_text("\n".join(lines) + "\n")
        return f"data/zoom_digits_debug/{name}"

    return make


@pytest.fixture
def failing(load, workspace):
    """failing("key=value", ...) is a short run whose reward always raises."""
    (workspace / "failing.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass\nclass Fails:\n"
        "    async def score(self, group, context):\n        raise OSError('the judge does not answer')\n"
    )
    return lambda *overrides: load(*SHORT, "rewards.0={use: failing.py:Fails, name: accuracy}", *overrides)


def test_a_run_goes_on_without_its_unusable_rows_and_lists_them(load, spoil, demo_rows):
    folder = demo_rows.folder
    (folder / "torn.png").write_bytes((folder / "train" / "0.png").read_bytes()[:500])
    shutil.copy(folder / "train" / "0.png", folder / "fine.png")
    rows = spoil(
        "spoiled.jsonl",
        {
            0: {"images": ["missing.png"]},
            1: {"images": ["torn.png"]},
            2: {"images": ["fine.png", "fine.png"]},
            3: {"boxes": [[1, 2, "three", 4]]},
            4: {"boxes": [[5000, 5000, 6000, 6000]]},
            5: {"images": ["../../reward.py"]},
        },
    )
    config = load(
        "name=bad", *SHORT, f"stages.1.rows={rows}", "stages.1.prompts_per_step=16", "data.max_bad_fraction=0.5"
    )
    run_dir = train(config)
    errors = [json.loads(line)["error"] for line in (run_dir / "data_errors.jsonl").read_text().splitlines()]
    told = {
        "row 0": "missing.png: cannot be read",
        "row 1": "torn.png",
        "row 2": "1 <image> placeholder(s) but 2 image(s)",
        "row 3": "gold box must be four numbers",
        "row 4": "outside the image",
        "row 5": "reward.py",
    }
    assert len(errors) == len(told)
    for row, text in told.items():
        (line,) = [error for error in errors if f"spoiled.jsonl {row}" in error]
        assert text in line
        assert "\n" not in line
    assert (run_dir / "summary.json").exists()


def test_too_many_unusable_rows_stop_the_run_and_say_where_they_are_listed(load, spoil):
    rows = spoil("worse.jsonl", {number: {"answer": ["no"]} for number in range(4)})
    with pytest.raises(DataError, match=r"of 16 rows cannot be used.*data_errors.jsonl"):
        train(load("name=worse", *SHORT, f"stages.1.rows={rows}"))


def test_a_reward_that_fails_is_an_error_in_the_metrics_and_trains_nothing(failing):
    run_dir = train(failing("name=failing"))
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["score_errors/accuracy"] == 4  # two prompts, two rollouts each
    assert last["reward"] is None
    assert last["skipped"] == 1
    assert "loss" not in last
    line = json.loads((run_dir / "rollouts" / "stream.jsonl").read_text().splitlines()[0])
    assert "the judge does not answer" in line["scores"]["accuracy"]["reason"]


def test_a_run_in_which_nothing_can_be_scored_ends_with_a_line_that_says_so(failing):
    with pytest.raises(MmrlError, match="grpo: no update in 5 steps in a row, the last of them step 5"):
        train(failing("name=hopeless", "stages.1.steps=9"))


def test_a_demonstration_that_cannot_be_played_costs_its_row_and_says_why(load, demo_rows):
    rows = demo_rows("demonstrations")
    answer = [{"role": "assistant", "content": "<answer>1</answer>"}]

    def call(**arguments):
        return [{"role": "assistant", "tool_calls": [{"name": "image_zoom_in_tool", "arguments": arguments}]}]

    rows[0]["demonstration"] = []
    rows[1]["demonstration"] = call(bbox_2d=[1, 2, 3]) + answer
    rows[2]["demonstration"] = call(bbox_2d=[0, 0, 40, 40], image=7) + answer
    rows[3]["demonstration"] = [{"role": "assistant", "content": "no answer"}]
    (demo_rows.folder / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = "data/zoom_digits_debug/odd.jsonl"
    config = load(
        "name=odd", *SHORT, f"stages.0.rows={file}", "stages.0.examples_per_step=12", "data.max_bad_fraction=0.5"
    )
    errors = [json.loads(line)["error"] for line in (train(config) / "data_errors.jsonl").read_text().splitlines()]
    assert sorted(error.split(" (id")[0] for error in errors) == [f"{file} row {n}" for n in range(4)]
    assert any("parse_failed after 1 turn(s)" in error for error in errors)
    assert all("the demonstration is not played to its answer" in error for error in errors)


def test_a_row_that_the_model_cannot_be_given_costs_that_row(load, demo_rows):
    """A Qwen2.5-VL takes no audio: the row is named and counted, the step goes on."""
    import soundfile

    soundfile.write(demo_rows.folder / "a.wav", [0.1] * 16000, 16000)
    rows = demo_rows("train")
    rows[3] = {"messages": [{"role": "user", "content": "<audio>What?"}], "audios": ["a.wav"], "answer": "7"}
    path = demo_rows.folder / "one_sound.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load(
        "name=one_sound",
        f"stages.1.rows={path}",
        "stages.0.steps=0",
        "stages.1.validation=null",
        "evaluate=null",
        "data.max_bad_fraction=0.5",
    )
    run_dir = train(config, overwrite=True)
    errors = [json.loads(line)["error"] for line in (run_dir / "data_errors.jsonl").read_text().splitlines()]
    assert len(errors) == 1
    assert "row 3" in errors[0]
    assert "this model takes no audio" in errors[0]
