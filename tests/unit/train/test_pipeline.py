"""Rollouts of the next step while this one's update runs: their weights, their rows, their end."""

import asyncio
import copy
import itertools
import json
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from mmrl.cache.features import FeatureCache
from mmrl.cache.shared import SharedFeatures
from mmrl.config import RolloutSection, RunConfig, load_config
from mmrl.errors import ConfigError, StoppedError
from mmrl.rollout.engine_hf import HFEngine
from mmrl.rollout.engine_vllm import VllmEngine
from mmrl.rollout.episode import Sampling
from mmrl.train.engine import TorchEngine
from mmrl.train.optim import build_optimizer, check_stages, select_parameters, set_learning_rate
from mmrl.train.rows import build_row, sampled_logprobs
from mmrl.train.session import open_session
from mmrl.train.stages import Grpo
from mmrl.types import Source, Tokens

ROOT = Path(__file__).parents[3]
VLLM = {"disable_log_stats": True, "kv_cache_memory_bytes": 1 << 28}
# Log-probs of an untrained model are far from a good answer: this reward tells every rollout from its siblings.
REWARD = """
import os
import signal
from dataclasses import dataclass
from mmrl.types import Score

@dataclass(frozen=True, kw_only=True)
class Parity:
    stop_at: int = -1

    async def score(self, group, context):
        if context.step == self.stop_at and not os.path.exists("stopped"):
            open("stopped", "w").close()
            os.kill(os.getpid(), signal.SIGTERM)
        return [Score.of(sum(t.segments[-1].ids) % 7) for t in group.trajectories]
"""


class CopyWriter:
    """Writes texts with a copy of the trainer's model, as long as the gate is open."""

    def __init__(self, model, family):
        self.model = copy.deepcopy(model)
        features = FeatureCache(self.model, family)
        self.engine = HFEngine(self.model, family, features, batch_size=8, deterministic=False)
        self.version, self.asleep, self.slept = 0, False, 0
        self.gate = threading.Event()
        self.gate.set()
        self.written, self.numbers = [], itertools.count()

    async def generate(self, call):
        while not self.gate.is_set():
            await asyncio.sleep(0.01)
        assert not self.asleep
        name = str(next(self.numbers))
        self.engine.open(name, name)
        whole = {"episode": name, "group": name, "order": (0, int(name)), "new": Tokens(ids=call.ids), "media": ()}
        found = await self.engine.generate(replace(call.request, **whole))
        self.engine.release(name)
        self.written.append(self.version)
        return replace(found, version=self.version)

    def take_weights(self, version, weights):
        self.model.load_state_dict(dict(weights()))
        self.version = version

    def sleep(self):
        self.asleep, self.slept = True, self.slept + 1

    def wake(self):
        self.asleep = False

    def close(self): ...


@pytest.fixture
def begin(model_dir, tmp_path, monkeypatch, write_rows, write_png):
    """begin(writer, ...) is a stage whose rollouts a CopyWriter writes, of texts, or vLLM, of images too."""
    monkeypatch.chdir(tmp_path)
    write_png("a.png", 112, 112)
    (tmp_path / "reward.py").write_text(REWARD)
    opened = []

    def make(writer="copy", *, staleness=1, rows=10, unusable=(), **keys):
        shown = {"images": ["a.png"]} if writer == "vllm" else {}
        text = "<image>" * len(shown) + "Which digit is it, number {}?"
        lines = [
            {"id": f"s{n}", "messages": [{"role": "user", "content": text.format(n)}], "answer": "7"} | shown
            for n in range(rows)
        ]
        for number in unusable:
            lines[number] |= {"images": ["missing.png"]}
            lines[number]["messages"][0]["content"] = "<image>What?"
        write_rows(*lines)
        stage = {"type": "grpo", "rows": "rows.jsonl", "steps": 5, "prompts_per_step": 2, "group_size": 3}
        stage |= {"optimizer": {"lr": 1e-2}, "freeze": ["*visual*"], "temperature": 0.9} | keys
        config = RunConfig.model_validate(
            {
                "name": "x",
                "model": {"path": str(model_dir), "device": "cpu"},
                "data": {
                    "image": {"use": "mmrl.processors.image:Image", "min_pixels": 3136, "max_pixels": 3136},
                    "max_bad_fraction": 1.0,
                },
                "rewards": [{"use": "reward.py:Parity"}],
                "episode": {"max_turns": 1, "max_turn_tokens": 12, "max_context": 1024},
                "stages": [stage],
            }
        )
        session = open_session(config, tell=lambda line: None)
        rollout = RolloutSection(engine="vllm", staleness=staleness, vllm=VLLM)
        session.config = config.model_copy(update={"rollout": rollout})
        model, family = session.checkpoint.model, session.checkpoint.family
        features = FeatureCache(model, family)
        if writer == "vllm":
            from mmrl.rollout.open_vllm import open_vllm

            engine = open_vllm(
                session.checkpoint, features, model_dir, rollout, config.episode, logs=tmp_path, tell=print
            )
        else:
            weights = lambda: iter(model.state_dict().items())  # noqa: E731
            engine = VllmEngine(CopyWriter(model, family), family, features, SharedFeatures(), weights)
        opened.append(engine)
        session.runner = replace(session.runner, engine=engine)
        section = config.stages[0]
        optimizer = build_optimizer(select_parameters(model, section.train, section.freeze), section.optimizer)
        trainer = TorchEngine(model, family, optimizer, micro_batch_tokens=10**4, max_grad_norm=1.0, features=features)
        return Grpo(session, section, trainer, None)

    yield make
    for engine in opened:
        engine.close()
    torch.use_deterministic_algorithms(False)


def run(stage, number, on_group=lambda group: None):
    """(metrics, groups) of a step, after which the policy is another."""
    groups = []
    set_learning_rate(stage.engine.optimizer, stage.config.optimizer, number)
    metrics = stage.step(number, lambda group: groups.append(group) or on_group(group))
    stage.session.weights_changed(vision=False)
    return metrics, groups


def versions(groups):
    """Of the weights that wrote the model's turns."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    return {turn.version for t in trajectories for turn in t.segments if turn.source is Source.MODEL}


def ids(groups):
    return [group.sample.id for group in groups]


def gap(stage, state, groups):
    """Mean difference between the log-probs that were written and those of these weights."""
    model = copy.deepcopy(stage.engine.model)
    model.load_state_dict(state)
    trainer = TorchEngine(model, stage.engine.family, None, micro_batch_tokens=10**4, max_grad_norm=1.0)
    trainer.temperature = stage.engine.temperature
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    rows = [build_row(trajectory, stage.engine.family) for trajectory in trajectories]
    media = {key: medium for trajectory in trajectories for key, medium in trajectory.media.items()}
    theirs = torch.from_numpy(sampled_logprobs(trajectories))
    assert len(theirs) > 30
    return float((trainer.logprobs(rows, media) - theirs).abs().mean())


@pytest.mark.filterwarnings("ignore")  # vLLM's own
@pytest.mark.parametrize("writer", ["copy", "vllm"])
def test_from_the_second_step_on_rollouts_are_of_the_weights_one_update_earlier(begin, writer):
    if writer == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed")
    stage, weights = begin(writer), []
    for number in range(5):
        weights.append(copy.deepcopy(stage.engine.model.state_dict()))
        metrics, groups = run(stage, number)
        lag = min(number, 1)
        assert metrics["policy_lag"] == lag
        assert versions(groups) == {number - lag}
        assert gap(stage, weights[number - lag], groups) <= 1e-5
        assert not lag or gap(stage, weights[number], groups) > 1e-3
        assert "stop/engine_error" not in metrics
    stage.close()


@pytest.mark.parametrize("steps_done", [1, 3])
def test_a_stage_that_goes_on_trains_on_every_row_once(begin, steps_done):
    """Rows 2 and 5 are unusable: others take their places."""
    options = {"unusable": (2, 5), "steps": 4}
    plain = begin(staleness=0, **options)
    expected = [ids(run(plain, number)[1]) for number in range(4)]
    assert len(set(itertools.chain(*expected))) == 8
    first = begin(**options)
    found = [ids(run(first, number)[1]) for number in range(steps_done)]
    first.close()
    second = begin(**options)
    second.sampler.position = first.position
    found += [ids(run(second, number)[1]) for number in range(steps_done, 4)]
    assert found == expected
    assert second.position == plain.position


def test_the_update_does_not_wait_and_what_is_in_flight_is_cut_off_at_the_end(begin):
    stage = begin()
    writer = stage.session.runner.engine.backend
    in_time = threading.Timer(60, writer.gate.set)
    in_time.start()
    run(stage, 0, lambda group: writer.gate.clear())  # from here on nothing is written
    assert len(writer.written) == 6
    assert [thread for thread in threading.enumerate() if thread.name.startswith("rollouts")]
    stage.close()
    assert in_time.is_alive()
    in_time.cancel()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rollouts")]
    stage.session.weights_changed(vision=True)  # no episode is open


def test_what_plays_between_steps_waits_and_is_written_by_the_newest_weights(begin):
    stage = begin(steps=3)
    session, writer = stage.session, stage.session.runner.engine.backend
    run(stage, 0, lambda group: writer.gate.clear())
    threading.Timer(0.2, writer.gate.set).start()
    prompts = [session.prompt(stage.dataset, 9)]
    between = session.play(prompts, group_size=2, sampling=Sampling(temperature=1.0, seed=0))
    assert writer.written == [0] * 12 + [1] * 2
    assert versions(between) == {1}
    metrics, groups = run(stage, 1)  # begun before, and kept
    assert versions(groups) == {0}
    assert metrics["policy_lag"] == 1
    assert versions(run(stage, 2)[1]) == {1}
    assert writer.slept == 1  # in the last step, when nothing is in flight


def test_an_update_that_is_over_before_the_first_episode_is_opened_changes_nothing(begin, monkeypatch):
    stage = begin(steps=2)
    engine = stage.session.runner.engine
    opening = engine.open
    monkeypatch.setattr(engine, "open", lambda *names: time.sleep(0.1) or opening(*names))
    run(stage, 0)
    stage.session.weights_changed(vision=False)
    assert versions(run(stage, 1)[1]) == {0}


def test_what_fails_in_the_background_is_raised_by_the_step_that_needs_it(begin):
    stage = begin()
    (term,) = stage.session.rewards
    stage.session.rewards = (replace(term, weight=lambda step: 1 / (2 - step)),)
    assert len(run(stage, 0)[1]) == len(run(stage, 1)[1]) == 2
    with pytest.raises(ZeroDivisionError):
        run(stage, 2)
    stage.close()


def test_episodes_that_were_opened_and_never_played_are_released(begin, monkeypatch):
    stage = begin()
    engine, calls = stage.session.runner.engine, itertools.count()
    opening = engine.open
    monkeypatch.setattr(engine, "open", lambda *names: opening(*names) if next(calls) < 8 else 1 / 0)
    run(stage, 0)
    with pytest.raises(ZeroDivisionError):
        run(stage, 1)
    stage.session.weights_changed(vision=True)  # no episode is open


def test_groups_are_told_in_the_main_thread(begin):
    stage, threads = begin(), []
    for number in range(2):
        run(stage, number, lambda group: threads.append(threading.current_thread()))
    stage.close()
    assert threads == [threading.main_thread()] * 4


def test_a_wider_gap_than_the_last_update_makes_is_told(begin):
    """From the ninth step on the backend's weights are not those that it was given."""
    stage, told = begin(steps=9, rows=30, optimizer={"lr": 1e-3}), []
    stage.session.tell, backend = told.append, stage.session.runner.engine.backend
    gaps = [run(stage, number)[0]["engine_gap/mean"] for number in range(7)]
    assert min(gaps[1:]) > stage.config.max_engine_gap > gaps[0]
    taking = backend.take_weights

    def take_wrongly(version, weights):
        taking(version, weights)
        with torch.no_grad():
            backend.model.model.language_model.norm.weight *= 3

    backend.take_weights = take_wrongly
    assert run(stage, 7)[0]["engine_gap/mean"] < 3 * min(gaps[1:])  # begun before
    assert told == []
    run(stage, 8)
    (line,) = told
    assert line.startswith("grpo step 9: the rollout engine's log-probs are ")
    assert "(3 times the median of the steps before is " in line


def test_a_gap_in_the_first_step_is_told_whatever_the_staleness(begin):
    stage, told = begin(steps=1, max_engine_gap=1e-9), []
    stage.session.tell = told.append
    run(stage, 0)
    assert [line[:12] for line in told] == ["grpo step 1:"]


def test_what_it_cannot_be_used_with_is_refused(begin):
    with pytest.raises(ValidationError, match="staleness 1 is for engine: vllm"):
        RolloutSection(staleness=1)
    with pytest.raises(ValidationError, match="staleness"):
        RolloutSection(engine="vllm", staleness=2)
    for staleness, freeze, refused in ((1, [], True), (1, ["*visual*"], False), (0, [], False)):
        session = begin(staleness=staleness, freeze=freeze).session
        with pytest.raises(ConfigError, match="stage 'grpo' trains a media encoder") if refused else nullcontext():
            check_stages(session.config, session.checkpoint)


SHORT = ("stages.0.steps=1", "evaluate=null", "report.log_groups=99", "stages.1.freeze=['*visual*']")
ENGINE = ("rollout.engine=vllm", "rollout.staleness=1", "rollout.vllm={kv_cache_memory_bytes: 268435456}")


@pytest.mark.filterwarnings("ignore")  # vLLM's own
def test_a_run_that_was_stopped_goes_on_with_the_rows_that_it_had_not_trained_on(tmp_path, monkeypatch):
    """In its second step the run gets the signal while it writes the rollouts of the third."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward.py").write_text(REWARD)

    def config(name, stop_at):
        reward = f"rewards.0={{use: reward.py:Parity, name: accuracy, stop_at: {stop_at}}}"
        return load_config(ROOT / "configs" / "debug.yaml", [f"name={name}", reward, *SHORT, *ENGINE])

    straight = train_lines(config("straight", -1))
    with pytest.raises(StoppedError) as stopped:
        train_lines(config("stopped", 2))
    done = int(str(stopped.value).split("step ")[1].split(";")[0])
    found = train_lines(config("stopped", 2))
    assert [line["samples"] for line in found] == [line["samples"] for line in straight]
    assert [line["policy_lag"] for line in straight] == [0, 1, 1, 1]
    assert [line["policy_lag"] for line in found] == [0 if step == done else min(step, 1) for step in range(4)]
    for line in (*straight, *found):
        assert line["skipped"] == 0
        assert line["policy_lag"] or line["engine_gap/mean"] <= 1e-5
    assert [bool("validation/reward" in line) for line in straight] == [False, True, False, True]


def train_lines(config):
    """Metrics of the GRPO steps, each with the samples that it was trained on."""
    from mmrl.train.run import train

    run_dir = train(config)
    torch.use_deterministic_algorithms(False)
    read = lambda path: [json.loads(line) for line in (run_dir / path).read_text().splitlines()]  # noqa: E731
    rollouts = [line for line in read("rollouts/stream.jsonl") if line["stage"] == "grpo"]
    return [
        {"skipped": 0.0, **line, "samples": [r["sample"] for r in rollouts if r["step"] == line["step"]]}
        for line in read("metrics.jsonl")
        if line["stage"] == "grpo"
    ]
