"""Accuracy against cost, on rows of files."""

import json

import numpy as np
import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

from mmrl.cli import app
from mmrl.config import load_config
from mmrl.errors import ConfigError
from mmrl.report.progress import Progress
from mmrl.report.store import RunStore, read_lines
from mmrl.scaling.measure import measure_strategies
from mmrl.scaling.named import build_strategies
from mmrl.scaling.one_look import Greedy
from mmrl.train.evaluate import evaluate_strategies
from mmrl.train.session import open_session
from mmrl.types import ScoreKind

ROWS = 9
CONFIG = """
name: strategies
runs_dir: {root}/runs
deterministic: false
model: {{path: {model}}}
data:
  image: {{use: mmrl.processors.image:Image, max_pixels: 12544}}
episode: {{max_turn_tokens: 4}}
rewards:
  - {{use: mmrl.rewards.answer:Exact, name: right}}
  - {{use: mmrl.rewards.format:Format, name: format}}
evaluate:
  rows: {root}/rows.jsonl
  test_time:
    densest: {{use: resolution-ladder, start_pixels: 50176, max_pixels: 50176, samples: 3}}
    ladder: {{use: "mmrl.scaling.ladders:ResolutionLadder", start_pixels: 3136, max_pixels: 50176, samples: 3}}
"""


@pytest.fixture
def config_file(tmp_path, model_dir):
    """A run on nine pictures of noise, whose answers are 0, 1, 2, 0, ..."""
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number in range(ROWS):
            pixels = np.random.default_rng(number).integers(0, 256, (224, 224, 3), dtype=np.uint8)
            Pillow.fromarray(pixels).save(tmp_path / f"{number}.png")
            message = {"role": "user", "content": "<image>Which?"}
            row = {"messages": [message], "images": [f"{number}.png"], "answer": str(number % 3)}
            file.write(json.dumps(row) + "\n")
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(root=tmp_path, model=model_dir))
    return path


@pytest.fixture
def session(config_file, runner):
    session = open_session(load_config(config_file))
    session.runner = runner  # its model gives answers
    return session


def test_accuracy_and_cost_are_those_of_the_outcomes(session):
    strategies = build_strategies(session.config.evaluate.test_time)
    outcomes = {name: [] for name in strategies}
    rows = session.dataset(session.config.evaluate.rows)
    found = measure_strategies(session, rows, strategies, lambda name, outcome: outcomes[name].append(outcome))
    for name, values in found.items():
        decided = outcomes[name]
        assert len(decided) == ROWS
        right = [outcome.answer == str(int(outcome.sample.id) % 3) for outcome in decided]
        assert values["accuracy"] == pytest.approx(np.mean(right))
        assert values["frames"] == pytest.approx(np.mean([3 * len(outcome.rounds) for outcome in decided]))
        assert values["rungs"] == pytest.approx(np.mean([len(outcome.rounds) for outcome in decided]))
        assert values["tokens"] == pytest.approx(np.mean([outcome.tokens for outcome in decided]))
        assert values["encoded"] == values["rungs"]  # a picture once at each size, whatever ran before
    assert found["densest"]["rungs"] == 1
    assert 1 < found["ladder"]["rungs"] < 3
    assert measure_strategies(session, rows, strategies) == found


def test_strategies_see_no_scores(session):
    seen = []

    class Nosy(type(build_strategies(session.config.evaluate.test_time)["densest"])):
        def decide(self, rounds):
            seen.extend(t for r in rounds for t in r.trajectories)
            return super().decide(rounds)

    outcomes = []
    rows = session.dataset(session.config.evaluate.rows)
    strategy = Nosy(start_pixels=3136, max_pixels=3136, samples=2)
    measure_strategies(session, rows, {"nosy": strategy}, lambda name, outcome: outcomes.append(outcome))
    assert len(seen) == 2 * ROWS
    assert all(not t.scores and t.reward.kind is ScoreKind.NOT_APPLICABLE for t in seen)
    assert all(outcome.winner.scores.keys() == {"right"} for outcome in outcomes)


def test_the_first_rows_are_written_by_rung(session, tmp_path):
    rows = session.dataset(session.config.evaluate.rows)
    strategies = build_strategies(session.config.evaluate.test_time)
    store = RunStore(tmp_path / "run")
    with Progress() as progress:
        evaluate_strategies(session, rows, strategies, progress, store)
    store.close()
    lines = list(read_lines(tmp_path / "run" / "rollouts" / "strategy_ladder.jsonl"))
    assert {line["sample"] for line in lines} == {"0", "1", "2", "3"}
    for sample in "0123":
        rungs = [line["rung"] for line in lines if line["sample"] == sample]
        assert [rung["number"] for rung in rungs] == sorted(rung["number"] for rung in rungs)
        assert [rung["accepted"] for rung in rungs] == [rung["number"] == rungs[-1]["number"] for rung in rungs]
        assert all(sum(rung["votes"].values()) == rung["frames"] == 3 for rung in rungs)
        assert rungs[0]["title"] == "3136 pixels"
    assert all((tmp_path / "run" / medium["file"]).exists() for line in lines for medium in line["media"].values())


def test_a_strategy_may_be_named_by_the_path_of_its_file(session, tmp_path):
    names = ["my/own.py:Mine", "my_own.py:Mine"]
    strategies = {name: Greedy() for name in names}
    store = RunStore(tmp_path / "run")
    with Progress() as progress:
        found = evaluate_strategies(session, session.dataset(session.config.evaluate.rows), strategies, progress, store)
    store.close()
    assert list(found) == names
    files = list((tmp_path / "run" / "rollouts").glob("strategy_*.jsonl"))
    assert len(files) == 2
    assert all(len(list(read_lines(file))) == 4 for file in files)


def test_eval_prints_accuracy_against_cost(config_file, tmp_path):
    result = CliRunner().invoke(app, ["eval", str(config_file), "--strategy", "ladder", "--strategy", "vote"])
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "runs/strategies-eval/summary.json").read_text())
    assert summary.keys() == {"test_time"}
    assert list(summary["test_time"]) == ["ladder", "vote"]
    for name, values in summary["test_time"].items():
        assert any(line.split()[1:2] == [name] or name in line.split() for line in result.output.splitlines())
        assert values.keys() == {"accuracy", "frames", "tokens", "rungs", "encoded"}
    assert summary["test_time"]["vote"]["frames"] == 8.0
    assert (tmp_path / "runs/strategies-eval/report.html").exists()


def test_eval_compares_what_the_configuration_names(config_file, tmp_path):
    result = CliRunner().invoke(app, ["eval", str(config_file)])
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "runs/strategies-eval/summary.json").read_text())
    assert summary["tools"].keys() == {"right", "format", "tool_calls"}
    assert list(summary["test_time"]) == ["densest", "ladder"]


def test_a_strategy_that_is_not_there_stops_before_anything_is_loaded(config_file):
    configured = load_config(config_file).evaluate.test_time
    with pytest.raises(ConfigError, match=r"--strategy: no strategy 'lader'; there are greedy"):
        build_strategies(configured, ["lader"])
    wrong = load_config(config_file, ["evaluate.test_time.densest.sample=3"]).evaluate.test_time
    with pytest.raises(ConfigError, match=r"evaluate.test_time.densest.sample: .* did you mean 'samples'"):
        build_strategies(wrong)
