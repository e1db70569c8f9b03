"""Signals ask a run to stop, and it goes on to the end of its step; what cannot be trained is told before the first."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmrl.config import load_config
from mmrl.errors import ConfigError
from mmrl.train.run import train

DEBUG = Path(__file__).parents[3] / "configs" / "debug.yaml"

STORM = """
import signal
from mmrl.train.run import stop_on_signal

signal.signal(signal.SIGALRM, lambda number, frame: None)
signal.setitimer(signal.ITIMER_REAL, 3e-4, 3e-4)
for _ in range(1000):
    with stop_on_signal((signal.SIGALRM,)) as stop:
        while not stop.requested:
            pass
signal.setitimer(signal.ITIMER_REAL, 0)
print("done")
"""


def test_a_storm_of_signals_raises_the_flag_and_blocks_nothing():
    result = subprocess.run([sys.executable, "-c", STORM], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout == "done\n", result.stderr


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rollout={engine: vllm, staleness: 1}", "stage 'grpo' trains a media encoder"),
        ("stages.1.freeze=['*visaul*']", r"'\*visaul\*' matches no parameter"),
    ],
)
def test_a_later_stage_that_cannot_be_trained_is_told_before_the_first_step(tmp_path, monkeypatch, override, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=told):
        train(load_config(DEBUG, [override]))
    torch.use_deterministic_algorithms(False)
    assert not (tmp_path / "runs" / "debug" / "metrics.jsonl").exists()
