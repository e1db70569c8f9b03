"""A GRPO step whose engine says other log-probs than the trainer: its loss, its metrics, its warning."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from mmrl.config import CorrectionSection, GrpoStage, RolloutSection, RunConfig
from mmrl.rollout.engine_hf import HFEngine
from mmrl.train.engine import TorchEngine
from mmrl.train.optim import build_optimizer, select_parameters, set_learning_rate
from mmrl.train.session import open_session
from mmrl.train.stages import Grpo
from mmrl.types import Source

SHIFTS = (0.0, -1.0, 0.5, -0.2)
"""What the engine adds to the log-probs of a turn's tokens, over and over."""
REWARD = """
from dataclasses import dataclass
from mmrl.types import Score

@dataclass(frozen=True)
class Number:
    async def score(self, group, context):
        return [Score.of(t.index) for t in group.trajectories]
"""


class ShiftedEngine(HFEngine):
    """Says other log-probs. Turns end after 4 tokens, and the second sibling's, of the policy before, after 7."""

    shifts = SHIFTS

    def decode(self, requests):
        requests = [replace(request, max_tokens=4 + 3 * request.order[1]) for request in requests]
        return [
            replace(
                completion,
                stopped=True,
                logprobs=tuple(a + b for a, b in zip(completion.logprobs, itertools.cycle(self.shifts), strict=False)),
                version=completion.version - request.order[1],
            )
            for request, completion in zip(requests, super().decode(requests), strict=True)
        ]


@pytest.fixture
def step(model_dir, tmp_path, monkeypatch, write_rows, write_png):
    """step(key=value, ...) makes a stage with these settings; it gives (metrics, groups) of its next step."""
    write_png("a.png", 112, 112)
    question = {"role": "user", "content": "Which digit is in the red frame?"}
    shown = question | {"content": "<image>" + question["content"]}
    write_rows({"messages": [shown], "images": ["a.png"], "answer": "7"}, {"messages": [question], "answer": "7"})
    (tmp_path / "reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    told = []

    def make(*, lr=0.0, shifts=SHIFTS, **keys):
        stage = {"type": "grpo", "rows": "rows.jsonl", "steps": 9, "prompts_per_step": 2, "group_size": 2}
        stage |= {"optimizer": {"lr": lr}, "scale": "none", "temperature": 0.9} | keys
        config = RunConfig.model_validate(
            {
                "name": "x",
                "model": {"path": str(model_dir), "device": "cpu"},
                "data": {"image": {"use": "mmrl.processors.image:Image", "min_pixels": 3136, "max_pixels": 3136}},
                "rewards": [{"use": "reward.py:Number"}],
                "episode": {
                    "max_turns": 2,
                    "max_turn_tokens": 8,
                    "tools": [{"use": "mmrl.tools.zoom:Zoom"}],
                    "script": [{"tool": "image_zoom_in_tool", "then": "<media>Which?", "otherwise": "{question}"}],
                },
                "stages": [stage],
            }
        )
        session = open_session(config, tell=lambda line: told.append(line) if line.startswith("grpo") else None)
        session.checkpoint = replace(session.checkpoint, model=copy.deepcopy(session.checkpoint.model))
        model, family = session.checkpoint.model, session.checkpoint.family
        features = session.runner.engine.features
        features.model = model
        engine = ShiftedEngine(model, family, features, batch_size=8, deterministic=True)
        engine.version, engine.shifts = 5, shifts
        session.runner = replace(session.runner, engine=engine)
        section = config.stages[0]
        optimizer = build_optimizer(select_parameters(model, section.train, section.freeze), section.optimizer)
        trainer = TorchEngine(model, family, optimizer, micro_batch_tokens=60, max_grad_norm=1.0, features=features)
        grpo, numbers = Grpo(session, section, trainer, None), itertools.count()

        def run():
            groups, number = [], next(numbers)
            set_learning_rate(optimizer, section.optimizer, number)
            metrics = grpo.step(number, groups.append)
            session.weights_changed(vision=True)
            return metrics, groups

        return run

    make.told = told
    yield make
    torch.use_deterministic_algorithms(False)


def turns_of(trajectory):
    return [segment for segment in trajectory.segments if segment.source is Source.MODEL]


def expected(groups, correction):
    """(loss, weights) by hand: the policy's own ratios are 1, so the loss is the mean of -w A."""
    losses, weights = [], []
    for group in groups:
        rewards = [t.reward.value for t in group.trajectories]
        for trajectory in group.trajectories:
            ratios = [math.exp(-SHIFTS[n % 4]) for turn in turns_of(trajectory) for n in range(len(turn.ids))]
            if correction["level"] == "sequence":
                ratios = [math.prod(ratios)] * len(ratios)
            for ratio in ratios:
                inside = correction.get("low", 0) <= ratio <= correction["high"]
                weights.append(ratio if inside else correction["high"] * (correction["kind"] == "truncate"))
                losses.append(-weights[-1] * (trajectory.reward.value - sum(rewards) / len(rewards)))
    return sum(losses) / len(losses), weights


PLAIN = {"kind": "truncate", "level": "token", "high": 0.2}
"""A bound below every ratio of SHIFTS: all weights are equal."""


@pytest.mark.parametrize("passes", [{}, {"epochs": 2}, {"minibatches": 2, "aggregate": "seq_sum"}])
@pytest.mark.parametrize(
    "correction",
    [
        {"kind": "truncate", "level": "token", "high": 2.0},
        {"kind": "mask", "level": "token", "low": 0.7, "high": 2.0},
        {"kind": "truncate", "level": "sequence", "high": 3.0},
        {"kind": "mask", "level": "sequence", "high": 1e3},
    ],
)
def test_the_loss_of_a_step_is_the_formula_on_what_the_engine_said(step, correction, passes):
    metrics, groups = step(correction=correction, **passes)()
    assert all(len(turns_of(t)) == 2 for group in groups for t in group.trajectories)
    loss, weights = expected(groups, correction)
    scale = len(weights) / 4 if "minibatches" in passes else 1.0  # token sums of trajectories, their mean
    assert metrics["loss"] == pytest.approx(loss * scale, rel=1e-5, abs=1e-5)
    assert metrics["correction/weight"] == pytest.approx(sum(weights) / len(weights), abs=1e-4)
    bound = 0.0 if correction["kind"] == "mask" else correction["high"]
    assert metrics["correction/changed"] == pytest.approx(weights.count(bound) / len(weights))
    assert 0 < metrics["correction/changed"] < 1 or correction["level"] == "sequence"


@pytest.mark.parametrize("keys", [{}, {"correction": {"kind": "none"}}])
def test_without_a_correction_the_engine_changes_no_loss_and_nothing_is_measured_of_one(step, keys):
    metrics, groups = step(**keys)()
    assert metrics["loss"] == pytest.approx(expected(groups, PLAIN)[0] / 0.2, abs=1e-6)
    assert not [name for name in metrics if name.startswith("correction")]


def test_the_gap_is_of_the_policy_that_sampled_in_every_later_update(step):
    """Of a policy that moved it would grow with every update."""
    metrics, _ = step(lr=1e-2, epochs=3, shifts=(0.0,), correction={"high": 2.0})()
    assert metrics["engine_gap/max"] < 1e-4
    assert metrics["correction/weight"] == pytest.approx(1.0, abs=1e-4)


def test_the_gap_is_measured_by_turn_and_by_what_the_model_had_seen(step):
    metrics, groups = step()()
    sizes = {"turn_1": [], "turn_2": [], "image": [], "text": []}
    for group in groups:
        kind = "image" if group.sample.media else "text"
        for trajectory in group.trajectories:
            for number, turn in enumerate(turns_of(trajectory), 1):
                found = [abs(SHIFTS[n % 4]) for n in range(len(turn.ids))]
                sizes[f"turn_{number}"] += found
                sizes[kind] += found
    for label, found in sizes.items():
        assert metrics[f"engine_gap/{label}/mean"] == pytest.approx(sum(found) / len(found), abs=1e-4)
        assert metrics[f"engine_gap/{label}/max"] == pytest.approx(max(found), abs=1e-4)
    tokens = sizes["turn_1"] + sizes["turn_2"]
    assert metrics["engine_gap/mean"] == pytest.approx(sum(tokens) / len(tokens), abs=1e-4)


def test_rollouts_of_an_older_policy_are_trained_on_and_their_lag_is_measured(step):
    metrics, groups = step()()
    lengths = [[t.num_model_tokens for t in group.trajectories] for group in groups]
    assert {s.version for g in groups for t in g.trajectories for s in turns_of(t)} == {4, 5}
    assert metrics["policy_lag"] == pytest.approx(sum(pair[1] for pair in lengths) / sum(map(sum, lengths)))


def test_a_wide_gap_is_told_once_a_stage(step):
    run = step()
    run()
    run()
    (line,) = step.told
    assert line.startswith("grpo step 1: the rollout engine's log-probs are ")
    assert "max_engine_gap is 0.05" in line


@pytest.mark.parametrize("keys", [{"shifts": (0.0,)}, {"max_engine_gap": None}, {"max_engine_gap": 2.0}])
def test_a_gap_within_the_bound_is_not_told(step, keys):
    step(**keys)()
    assert step.told == []


def stage_with(**keys):
    required = {"rows": "a.jsonl", "steps": 1, "prompts_per_step": 1, "group_size": 2, "optimizer": {"lr": 0.1}}
    return GrpoStage.model_validate({"type": "grpo", **required, **keys})


def test_rollouts_of_another_engine_are_corrected_unless_the_stage_says_otherwise():
    hf, vllm = RolloutSection(engine="hf"), RolloutSection(engine="vllm")
    assert stage_with().correction_of(hf) is None
    assert stage_with().correction_of(vllm) == CorrectionSection(kind="truncate", level="token", high=2.0)
    own = {"kind": "mask", "level": "sequence", "low": 0.5, "high": 5.0}
    assert stage_with(correction=own).correction_of(hf) == CorrectionSection(**own)
    assert stage_with(correction=own).correction_of(vllm) == CorrectionSection(**own)
    assert stage_with(correction={"kind": "none"}).correction_of(vllm) is None


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"correction": {"kind": "truncate", "low": 0.5}}, "low is a bound of kind 'mask'"),
        ({"correction": {"kind": "mask", "low": 1.5}}, "less than or equal to 1"),
        ({"correction": {"kind": "mask", "high": 0.9}}, "greater than or equal to 1"),
        ({"correction": {"high": float("nan")}}, "correction.high"),
        ({"correction": {"high": float("inf")}}, "finite number"),
        ({"correction": {"kind": "clip"}}, "'none', 'truncate' or 'mask'"),
        ({"correction": {"hihg": 3}}, "correction.hihg"),
        ({"max_engine_gap": 0}, "greater than 0"),
    ],
)
def test_a_correction_that_cannot_be_meant_is_refused(keys, text):
    with pytest.raises(ValidationError) as caught:
        stage_with(**keys)
    assert text in str(caught.value)
