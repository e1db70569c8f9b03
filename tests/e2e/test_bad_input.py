"""Unusable rows cost themselves, one clear line each; the run goes on without them."""

import json
import shutil

import pytest

from mmrl.errors import DataError, MmrlError
from mmrl.train.run import train

SHORT = ("stages.0.steps=1", "stages.1.steps=1", "stages.1.prompts_per_step=2", "evaluate.limit=4")


@pytest.fixture
def spoil(load, workspace):
    """spoil(number, ...) is a file of the training rows in which each numbered row is replaced."""
    from mmrl.resolve import build

    plugin = load().setup[0]
    build(plugin.use, plugin.fields).prepare(0)
    folder = workspace / "data" / "zoom_digits_debug"

    def make(name, changes):
        rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        lines = [json.dumps(row | changes.get(number, {})) for number, row in enumerate(rows)]
        (folder / name).write_text("\n".join(lines) + "\n")
        return f"data/zoom_digits_debug/{name}"

    return make


def test_a_run_goes_on_without_its_unusable_rows_and_lists_them(load, spoil, workspace):
    folder = workspace / "data" / "zoom_digits_debug"
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


def test_a_reward_that_fails_is_an_error_in_the_metrics_and_trains_nothing(load, workspace):
    (workspace / "failing.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass\nclass Fails:\n"
        "    async def score(self, group, context):\n        raise OSError('the judge does not answer')\n"
    )
    config = load("name=failing", *SHORT, "rewards.0={use: failing.py:Fails, name: accuracy}")
    run_dir = train(config)
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["score_errors/accuracy"] == 4  # two prompts, two rollouts each
    assert last["reward"] is None
    assert last["skipped"] == 1
    assert "loss" not in last
    line = json.loads((run_dir / "rollouts" / "stream.jsonl").read_text().splitlines()[0])
    assert "the judge does not answer" in line["scores"]["accuracy"]["reason"]


def test_a_run_in_which_nothing_can_be_scored_ends_with_a_line_that_says_so(load, workspace):
    config = load("name=hopeless", *SHORT, "stages.1.steps=9", "rewards.0={use: failing.py:Fails, name: accuracy}")
    with pytest.raises(MmrlError, match="grpo: no update in 5 steps in a row, the last of them step 5"):
        train(config)
    assert config.run_dir.joinpath("checkpoints", "last").name == "last"
