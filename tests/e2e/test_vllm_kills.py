"""A run whose vLLM server is killed three times loses no rollout and trains on none twice."""

import collections
import itertools
import json
import os
import signal
import threading

import pytest

from mmrl.train.run import train

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own

SMALL = ("stages.0.steps=1", "evaluate=null", "stages.1.validation=null", "checkpoint.every=0", "report.log_groups=99")
VLLM = ("rollout.engine=vllm", "rollout.servers.count=1", "rollout.vllm={kv_cache_memory_bytes: 268435456}")


# Half of the trajectories are better than others: the weights change in every step.
REWARD = """
from dataclasses import dataclass
from mmrl.types import Score

@dataclass(frozen=True)
class Parity:
    async def score(self, group, context):
        return [Score.of(sum(t.segments[-1].ids) % 7) for t in group.trajectories]
"""


@pytest.fixture
def started(monkeypatch):
    """Every server process that was started."""
    from mmrl.rollout.vllm_process import ServerProcess

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # servers of fewer processes, that start sooner
    found, make = [], ServerProcess.__init__

    def keep(self, *arguments):
        make(self, *arguments)
        found.append(self)

    monkeypatch.setattr(ServerProcess, "__init__", keep)
    yield found
    for process in found:
        process.end()


@pytest.fixture
def kill_at(monkeypatch, started):
    """kill_at(class, name, call, after=0): the server is killed at that call of a method, or `after` seconds from it.
    Returns the names of what has come to its kill."""
    done = []

    def kill(name):
        done.append(name)
        os.killpg(started[-1].process.pid, signal.SIGKILL)

    def arrange(owner, name, call, after=0.0):
        original, calls = getattr(owner, name), itertools.count()

        def wrapped(*arguments, **named):
            if next(calls) == call:
                threading.Timer(after, kill, [name]).start() if after else kill(name)
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, wrapped)
        return done

    return arrange


def test_a_server_may_die_while_it_writes_while_it_takes_weights_and_between_steps(load, workspace, started, kill_at):
    from mmrl.rollout.engine_vllm import VllmEngine
    from mmrl.rollout.vllm_client import Client
    from mmrl.rollout.vllm_server import Server

    (workspace / "kills_reward.py").write_text(REWARD)
    kill_at(Client, "generate", 4, after=0.05)  # of 8 first turns the fifth: others are being written
    kill_at(Server, "_set_version", 2)  # the weights are loaded, caches are reset
    done = kill_at(VllmEngine, "weights_changed", 3)
    run_dir = train(load("name=kills", "rewards.0={use: kills_reward.py:Parity, name: accuracy}", *SMALL, *VLLM))
    assert sorted(done) == ["_set_version", "generate", "weights_changed"]
    assert len(started) == 4  # however many requests found a dead one
    lines = read(run_dir / "rollouts" / "stream.jsonl")
    found = collections.Counter((line["step"], line["sample"], line["index"]) for line in lines)
    assert set(found.values()) == {1}
    assert collections.Counter(step for step, _, _ in found) == {1: 8, 2: 8, 3: 8, 4: 8}
    assert "engine_error" not in {line["stop"] for line in lines}
    steps = [line for line in read(run_dir / "metrics.jsonl") if line["stage"] == "grpo"]
    assert len(steps) == 4
    for line in steps:
        assert line["engine_gap/mean"] <= 1e-5
        assert line["engine_gap/max"] <= 1e-4
        assert line["policy_lag"] == 0


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
