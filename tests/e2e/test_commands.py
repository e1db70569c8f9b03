"""The command line, as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmrl.config import load_config

ROOT = Path(__file__).parents[2]
DEBUG = ROOT / "configs" / "debug.yaml"


@pytest.fixture(scope="module")
def mmrl(workspace):
    """mmrl("train", ...) runs the command in the workspace."""

    def run(*arguments):
        command = [sys.executable, "-m", "mmrl.cli", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        return subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False, env=environment)

    return run


@pytest.fixture(scope="module")
def trained(mmrl):
    return mmrl("train", DEBUG, "name=trained")


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_train_ends_with_the_table_and_the_place_of_the_report(trained, workspace):
    assert trained.returncode == 0, trained.stderr
    lines = trained.stdout.splitlines()
    assert lines[-1] == f"Report: {Path('runs/trained/report.html')}"
    for title in ("before RL", "after RL", "without tools"):
        assert any(title in line for line in lines[-8:])
    assert (workspace / "runs/trained/report.html").exists()
    assert trained.stderr == ""


def test_the_summary_holds_what_the_table_shows(trained, workspace):
    summary = json.loads((workspace / "runs/trained/summary.json").read_text())
    assert summary.keys() == {"rows", "train_seconds", "no_tools", "before", "after"}
    assert summary["rows"] == 16
    assert summary["no_tools"].keys() == {"accuracy"}
    for part in ("before", "after"):
        assert summary[part].keys() == {"accuracy", "format", "tool_calls", "mean_iou"}


def test_the_run_directory_is_self_contained(trained, workspace):
    run = workspace / "runs/trained"
    assert load_config(run / "config.yaml").name == "trained"
    assert json.loads((run / "manifest.json").read_text())["versions"]["torch"]
    steps = [(line["stage"], line["step"]) for line in read(run / "metrics.jsonl")]
    assert steps == [("sft", n) for n in range(1, 5)] + [("grpo", n) for n in range(1, 5)]
    for line in read(run / "rollouts/stream.jsonl"):
        assert all((run / medium["file"]).exists() for medium in line["media"].values())


def test_the_same_command_again_prints_the_result(trained, mmrl):
    again = mmrl("train", DEBUG, "name=trained")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-8:] == trained.stdout.splitlines()[-8:]


def test_rollout_and_eval_take_a_checkpoint_of_the_run(trained, mmrl, workspace):
    checkpoint = sorted((workspace / "runs/trained/checkpoints").iterdir())[-1].relative_to(workspace)
    played = mmrl("rollout", DEBUG, "name=trained", "--checkpoint", checkpoint, "--limit", 2, "--group", 3)
    assert played.returncode == 0, played.stderr
    lines = read(workspace / "runs/trained-rollout/rollouts/stream.jsonl")
    assert [(line["sample"], line["index"]) for line in lines] == [(f"test-{r}", s) for r in range(2) for s in range(3)]
    measured = mmrl("eval", DEBUG, "name=trained", "--checkpoint", checkpoint)
    assert measured.returncode == 0, measured.stderr
    found = json.loads((workspace / "runs/trained-eval/summary.json").read_text())
    assert found["tools"] == json.loads((workspace / "runs/trained/summary.json").read_text())["after"]


def test_the_report_can_be_written_anew_while_a_run_is_going(trained, mmrl, workspace):
    page = workspace / "runs/trained/report.html"
    page.unlink()
    (workspace / "runs/trained/summary.json").rename(workspace / "summary.aside")
    assert mmrl("report", "runs/trained").returncode == 0
    (workspace / "summary.aside").rename(workspace / "runs/trained/summary.json")
    assert page.read_text().count("<article>") >= 20


def test_rollout_works_by_itself(mmrl):
    played = mmrl("rollout", DEBUG, "name=alone", "--limit", 1)
    assert played.returncode == 0, played.stderr
    assert "model: data/zoom_digits_debug/model-0" in played.stdout
    assert "test-0.0" in played.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("train", "nothing.yaml"), "nothing.yaml: cannot be read"),
        (("train", DEBUG, "sed=1"), "did you mean 'seed'"),
        (("train", DEBUG, "name=b", "model.path=no/such/folder"), "no folder no/such/folder"),
        (("train", DEBUG, "name=b", "stages.0.rows=missing.jsonl"), "missing.jsonl: cannot be read"),
        (("train", DEBUG, "name=b", "rewards.0.use=mmrl.rewards.answer:Exct"), "did you mean 'Exact'"),
        (("report", "nowhere"), "nowhere: holds no run"),
        (("eval", DEBUG, "--checkpoint", "nowhere"), "--checkpoint: no folder nowhere"),
    ],
)
def test_what_a_user_can_mend_is_one_line_without_a_traceback(mmrl, arguments, told):
    result = mmrl(*arguments)
    assert result.returncode == 2
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")


def test_config_show_prints_a_configuration_that_loads(mmrl, tmp_path):
    shown = mmrl("config", "show", DEBUG, "seed=5")
    (tmp_path / "shown.yaml").write_text(shown.stdout)
    assert load_config(tmp_path / "shown.yaml") == load_config(DEBUG, ["seed=5"])


def test_doctor_finds_nothing_wrong_here(mmrl):
    result = mmrl("doctor")
    assert result.returncode == 0, result.stdout
    assert "Everything works." in result.stdout


def test_help_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from mmrl.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "train" in result.stdout
