"""The stages learn: what is shown or rewarded becomes likelier, and nothing else is trained on."""

import json

import pytest

from mmrl.config import GrpoStage, SftStage
from mmrl.rollout.episode import Sampling
from mmrl.train.engine import TorchEngine
from mmrl.train.optim import build_optimizer, select_parameters, set_learning_rate
from mmrl.train.session import open_session
from mmrl.train.stages import Grpo, Sft, draw

EVEN = """
from dataclasses import dataclass
from mmrl.types import Score, Source

@dataclass(frozen=True)
class Even:
    async def score(self, group, context):
        first = [next(s for s in t.segments if s.source is Source.MODEL).ids[0] for t in group.trajectories]
        return [Score.of(token % 2 == 0) for token in first]
"""


@pytest.fixture
def start(load, workspace):
    """start(stage number, "key=value", ...) is (session, stage, step function)."""
    (workspace / "even.py").write_text(EVEN)

    def make(number, *overrides):
        config = load(
            "rewards.0={use: even.py:Even, name: accuracy}", "rewards.1.weight=0", "rewards.2.weight=0", *overrides
        )
        session, section = open_session(config, tell=print), config.stages[number]
        model = session.checkpoint.model
        optimizer = build_optimizer(select_parameters(model, section.train, section.freeze), section.optimizer)
        engine = TorchEngine(model, session.checkpoint.family, optimizer, micro_batch_tokens=4000, max_grad_norm=1.0)
        stage = Sft(session, section, engine) if isinstance(section, SftStage) else Grpo(session, section, engine, None)
        assert isinstance(section, (SftStage, GrpoStage))

        def step(index):
            set_learning_rate(optimizer, section.optimizer, index)
            metrics = stage.step(index, lambda group: None)
            session.weights_changed(vision=engine.trains_vision)
            return metrics

        return session, stage, step

    return make


GRPO = (
    "episode.max_turns=1",
    "episode.max_turn_tokens=3",
    "stages.1.prompts_per_step=4",
    "stages.1.group_size=8",
    "stages.1.kl_beta=0",
    "stages.1.optimizer.lr=3.0e-3",
)


@pytest.mark.parametrize("reuse", [(), ("stages.1.epochs=2", "stages.1.minibatches=2")])
def test_grpo_makes_what_is_rewarded_likelier(start, reuse):
    _, _, step = start(1, *GRPO, *reuse)
    rewards = [step(index)["reward"] for index in range(16)]
    assert sum(rewards[:2]) / 2 < 0.8
    assert sum(rewards[-2:]) / 2 > 0.95


def test_shuffled_advantages_teach_nothing(start):
    _, _, step = start(1, *GRPO, "stages.1.shuffle_advantages=true", "stages.1.optimizer.lr=3.0e-4")
    rewards = [step(index)["reward"] for index in range(16)]
    assert sum(rewards[-4:]) / 4 < 0.9


def test_the_first_step_compares_engine_and_trainer_and_they_agree(start):
    _, _, step = start(1, *GRPO)
    metrics = step(0)
    assert metrics["engine_gap/max"] < 1e-4
    assert metrics["clip_fraction"] == 0


def test_sft_teaches_the_demonstrations(start):
    session, stage, step = start(0, "stages.0.examples_per_step=8")
    losses = [step(index)["loss"] for index in range(8)]
    assert losses[-1] < 0.5 * losses[0]
    assert len(stage.examples) == 16  # each is played once


def test_a_demonstration_has_the_tokens_of_a_rollout(start):
    """The engine's prompt and the tool's answer, then the row's own call and answer; only those are targets."""
    session, stage, _ = start(0)
    rows = json.loads("[" + ",".join(open_rows("data/zoom_digits_debug/demonstrations.jsonl")) + "]")
    family = session.checkpoint.family
    for index, row in enumerate(rows[:6]):
        example = stage._example(index)
        told = family.decode(example.row.target_N.tolist())
        calls = [call for message in row["demonstration"] for call in message.get("tool_calls", [])]
        assert told.endswith(f"<answer>{row['answer']}</answer>")
        assert told.count("image_zoom_in_tool") == len(calls)
        assert len(example.media) == 1 + len(calls)
        prompt = session.runner.prompt(session.dataset(session.config.stages[0].rows).load(index), 0).tokens.ids
        assert tuple(example.row.ids_T[: len(prompt)]) == prompt


def open_rows(path):
    with open(path) as file:
        return file.read().splitlines()


def test_rows_that_cannot_be_used_are_replaced_by_the_next_ones(start):
    from mmrl.data.sampler import Sampler
    from mmrl.errors import DataError

    sampler = Sampler(10, seed=0)
    items = draw(sampler, 6, lambda index: index if index % 2 else None)
    assert len(items) == 6
    assert all(item % 2 for item in items)
    with pytest.raises(DataError, match="too few usable rows"):
        draw(sampler, 1, lambda index: None)


def test_a_batch_of_rollouts_repeats_to_the_bit(start):
    session, _, _ = start(1, *GRPO)
    dataset = session.dataset("data/zoom_digits_debug/test.jsonl")
    rows = [session.prompt(dataset, index) for index in range(4)]
    sampling = Sampling(temperature=1.0, seed=3)
    first, second = (session.play(rows, group_size=4, sampling=sampling) for _ in range(2))
    assert [t.segments for g in first for t in g.trajectories] == [t.segments for g in second for t in g.trajectories]
