"""The rows of the next step are loaded while the model is trained, which changes nothing of what a run computes."""

import json
import signal
import sys
import threading

import pytest

from mmrl.errors import StoppedError
from mmrl.resolve import import_object
from mmrl.train.engine import TorchEngine
from mmrl.train.run import train

PATIENCE_S = 120
PROCESSOR = """
import os, signal, threading
from dataclasses import dataclass
from mmrl.processors.image import Image
from mmrl.types import Score

LOADS = []
TRAINING = threading.Event()
LOADED = threading.Semaphore(0)
SIGNALLED = []

@dataclass(frozen=True, kw_only=True)
class Gated(Image):
    "Loads ahead only while the model is trained."
    def load(self, ref):
        ahead = threading.current_thread().name == "prefetch"
        assert not ahead or TRAINING.wait(120)
        found = Image.load(self, ref)
        LOADS.append((ref.path, ahead))
        if ahead:
            LOADED.release()
        return found

@dataclass(frozen=True, kw_only=True)
class Length:
    stop: bool = False

    async def score(self, group, context):
        if self.stop and not SIGNALLED:
            SIGNALLED.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return [Score.of(sum(t.segments[-1].ids) % 7) for t in group.trajectories]
"""
ROWS = {"sft": "demonstrations", "grpo": "train"}
COUNTS = {"sft": "examples_per_step: 4", "grpo": "prompts_per_step: 4, group_size: 2"}


@pytest.fixture
def gated(load, workspace):
    """The module of PROCESSOR, with nothing loaded yet."""
    (workspace / "gated.py").write_text(PROCESSOR)
    module = sys.modules[import_object("gated.py:Gated").__module__]
    module.LOADS.clear()
    module.SIGNALLED.clear()
    module.TRAINING.clear()
    while module.LOADED.acquire(blocking=False):
        pass
    return module


@pytest.fixture
def config(load, demo_rows):
    """config(name, kind of stage, "key=value", ...) is a run of four steps, which see every row once."""

    def make(name, kind, *overrides):
        stage = f"type: {kind}, rows: {demo_rows.folder}/{ROWS[kind]}.jsonl, steps: 4, {COUNTS[kind]}"
        return load(
            f"name={name}",
            f"stages=[{{{stage}, optimizer: {{lr: 1.0e-3}}}}]",
            "rewards=[{use: gated.py:Length, name: length}]",
            "evaluate=null",
            *overrides,
        )

    return make


def no_thread_is_left():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"] == []


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_the_next_rows_are_loaded_while_the_model_is_trained(kind, config, gated, monkeypatch):
    update, steps = TorchEngine.update, []

    def watched(engine, *arguments, **named):
        """An update that ends only once the media of the next step are loaded."""
        steps.append(1)
        gated.TRAINING.set()
        for _ in range(4 if len(steps) < 4 else 0):
            assert gated.LOADED.acquire(timeout=PATIENCE_S)
        gated.TRAINING.clear()
        return update(engine, *arguments, **named)

    monkeypatch.setattr(TorchEngine, "update", watched)
    image = "data.image={use: gated.py:Gated, min_pixels: 12544, max_pixels: 12544}"
    train(config(f"overlap_{kind}", kind, image))
    assert len(steps) == 4
    assert [ahead for _, ahead in gated.LOADS] == [False] * 4 + [True] * 12
    assert len({path for path, _ in gated.LOADS}) == 16
    assert no_thread_is_left()


def outcome(run_dir):
    last = sorted((run_dir / "checkpoints").iterdir())[-1]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if k != "time" and "second" not in k} for line in lines]
    return metrics, (last / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_run_is_the_same_to_the_bit_however_far_it_loads_ahead(kind, config, gated):
    runs = [
        train(config(f"{kind}_{number}", kind, *overrides))
        for number, overrides in enumerate(
            [
                ("data.prefetch_steps=0",),
                ("data.prefetch_steps=1",),
                ("data.prefetch_steps=9",),
                ("data.prefetch_steps=1", "data.cached_bytes=0"),
            ]
        )
    ]
    first, *others = map(outcome, runs)
    assert len(first[0]) == 4
    for other in others:
        assert other == first


def test_a_run_goes_on_with_another_number_of_steps_ahead(config, gated):
    straight = outcome(train(config("straight_ahead", "grpo", "data.prefetch_steps=0")))
    train(config("changed", "grpo", "data.prefetch_steps=2", "stages.0.steps=2"))
    assert outcome(train(config("changed", "grpo", "data.prefetch_steps=0"))) == straight


def test_a_run_that_is_stopped_waits_for_no_decoding_that_hangs(config, gated, monkeypatch):
    """Nothing opens the gate: what is loaded ahead would hang until the test's patience is over."""
    monkeypatch.setattr("mmrl.data.prefetch.PATIENCE_S", 0.01)
    image = "data.image={use: gated.py:Gated, min_pixels: 12544, max_pixels: 12544}"
    stopping = "rewards.0={use: gated.py:Length, name: length, stop: true}"
    with pytest.raises(StoppedError, match="stopped after grpo step 1"):
        train(config("stopped_ahead", "grpo", image, stopping))
    assert [ahead for _, ahead in gated.LOADS] == [False] * 4
    assert not no_thread_is_left()  # it is held at the gate, and holds nobody
    gated.TRAINING.set()
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join(PATIENCE_S)
    assert no_thread_is_left()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_rows_are_loaded_ahead_of_an_evaluation_too(config, gated, demo_rows):
    gated.TRAINING.set()
    image = "data.image={use: gated.py:Gated, min_pixels: 12544, max_pixels: 12544}"
    evaluate = f"evaluate={{rows: {demo_rows.folder}/test.jsonl}}"
    train(config("evaluated", "grpo", image, evaluate, "rollout.batch_size=4", "data.prefetch_steps=1"))
    ahead = {path for path, was_ahead in gated.LOADS if was_ahead}
    tested = {row["images"][0] for row in demo_rows("test")}
    assert len(tested & ahead) > 0
    assert len(gated.LOADS) == len({path for path, _ in gated.LOADS})
    assert no_thread_is_left()
