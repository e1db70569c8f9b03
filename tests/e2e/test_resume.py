"""A run that was stopped, killed or extended ends exactly where an undisturbed one does."""

import json
import signal
import subprocess
import sys

import pytest

from mmrl.errors import ConfigError, MmrlError, StoppedError
from mmrl.train.run import train

SHORT = ("stages.0.steps=2", "stages.0.examples_per_step=2", "evaluate.limit=4", "checkpoint.every=2")
# Log-probs of an untrained model are far from a good answer: this reward tells every rollout from its siblings.
REWARD = """
import os
import signal
from dataclasses import dataclass
from mmrl.types import Score

@dataclass(frozen=True, kw_only=True)
class Length:
    kill: int = 0
    marker: str = ""

    async def score(self, group, context):
        if context.step == 1 and self.kill and not os.path.exists(self.marker):
            open(self.marker, "w").close()
            os.kill(os.getpid(), self.kill)
        return [Score.of(sum(t.segments[-1].ids) % 7) for t in group.trajectories]
"""


@pytest.fixture
def config(load, workspace):
    """config(name, kill=0) is a run of 4 GRPO steps; `kill` is sent to the process in its second."""
    (workspace / "reward.py").write_text(REWARD)

    def make(name, *overrides, kill=0):
        marker = workspace / f"{name}.killed"
        reward = f"rewards.0={{use: reward.py:Length, name: accuracy, kill: {int(kill)}, marker: {marker}}}"
        return load(f"name={name}", reward, *SHORT, *overrides)

    return make


@pytest.fixture(scope="session")
def _straight():
    return {}


@pytest.fixture
def straight(config, _straight):
    """What an undisturbed run leaves."""
    if not _straight:
        _straight.update(outcome(train(config("straight"))))
    return _straight


def outcome(run_dir):
    """Everything that a run computed, without its clock."""
    last = sorted((run_dir / "checkpoints").iterdir())[-1]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "tokens_per_second")
    metrics = [{k: v for k, v in line.items() if k not in timed and "seconds" not in k} for line in lines]
    state = json.loads((last / "state.json").read_text())
    summary = json.loads((run_dir / "summary.json").read_text())
    return {
        "model": (last / "model" / "model.safetensors").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "state": {k: v for k, v in state.items() if k != "train_seconds"},
        "metrics": metrics,
        "rollouts": (run_dir / "rollouts" / "stream.jsonl").read_text(),
        "summary": {k: v for k, v in summary.items() if k != "train_seconds"},
    }


def assert_same(run_dir, straight):
    found = outcome(run_dir)
    for part, value in straight.items():
        assert found[part] == value, part


def test_two_steps_and_two_more_equal_four_straight_to_the_bit(config, straight):
    train(config("extended", "stages.1.steps=2"))
    assert_same(train(config("extended")), straight)
    changed = [line["grad_norm"] for line in straight["metrics"] if line["stage"] == "grpo"]
    assert len(changed) == 4
    assert all(norm > 0 for norm in changed)  # the steps that are compared did something


def test_a_run_stopped_by_a_signal_saves_and_goes_on_exactly(config, straight):
    stopped = config("stopped", kill=signal.SIGTERM)
    with pytest.raises(StoppedError, match="grpo step 2; the same command continues there"):
        train(stopped)
    train(stopped)
    assert_same(stopped.run_dir, straight)


def test_a_killed_run_goes_on_from_its_last_checkpoint_exactly(config, straight, workspace):
    killed = config("killed", kill=signal.SIGKILL)
    (workspace / "killed.yaml").write_text(json.dumps(killed.model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, "-m", "mmrl.cli", "train", "killed.yaml"]
    assert subprocess.run(command, cwd=workspace, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert len((killed.run_dir / "metrics.jsonl").read_text().splitlines()) == 3  # two of sft, one of grpo
    train(killed)
    assert_same(killed.run_dir, straight)


def test_the_kl_reference_is_the_policy_that_the_stage_began_with(config):
    run_dir = train(config("reference", "stages.1.steps=1"))
    began = run_dir / "checkpoints" / "00-sft-000002" / "model" / "model.safetensors"
    ended = run_dir / "checkpoints" / "01-grpo-000001" / "model" / "model.safetensors"
    reference = run_dir / "reference" / "grpo" / "model.safetensors"
    assert reference.read_bytes() == began.read_bytes()
    assert reference.read_bytes() != ended.read_bytes()


def test_another_configuration_is_refused_by_key(config, straight):
    with pytest.raises(ConfigError, match=r"seed: 0 -> 1.*--overwrite"):
        train(config("straight", "seed=1"))


def test_overwrite_starts_anew(config):
    train(config("anew", "stages.1.steps=1"))
    run_dir = train(config("anew", "stages.1.steps=1", "seed=1"), overwrite=True)
    assert "seed: 1" in (run_dir / "config.yaml").read_text()


def test_a_damaged_checkpoint_is_named(config):
    damaged = config("damaged", "stages.1.steps=1")
    last = sorted((train(damaged) / "checkpoints").iterdir())[-1]
    (last / "state.json").write_text((last / "state.json").read_text().replace("grpo", "gprO"))
    with pytest.raises(MmrlError, match="state.json: missing or damaged"):
        train(damaged)


def test_a_start_that_failed_leaves_nothing_to_refuse(config):
    with pytest.raises(ConfigError, match="no folder"):
        train(config("mended", "model.path=no/such/folder"))
    assert train(config("mended", "stages.1.steps=1")).is_dir()
