"""A reward that fails is an error and never a zero; the rest add up by their weights."""

import asyncio
from dataclasses import dataclass

import pytest

from mmrl.adapt.rewards import build_reward
from mmrl.config import Schedule
from mmrl.protocols import RewardContext
from mmrl.scoring import WeightedReward, combine, score_each, score_group
from mmrl.types import Score, ScoreKind

NA = Score.not_applicable("no gold")


@dataclass
class Fixed:
    """Gives what it was made with; raises it where it is an exception."""

    result: object

    async def score(self, group, context):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def scored(make_group, make_trajectory):
    """scored(name=result or (result, weight), ...) is the group of two siblings, scored."""

    def run(step=0, **results):
        rewards = []
        for name, result in results.items():
            value, weight = result if isinstance(result, tuple) else (result, 1.0)
            schedule = weight if isinstance(weight, Schedule) else Schedule(start=weight)
            rewards.append(WeightedReward(name=name, reward=Fixed(value), weight=schedule.at))
        group = make_group(make_trajectory("7", index=0), make_trajectory("8", index=1))
        return asyncio.run(score_group(group, rewards, RewardContext(step=step)))

    return run


def values(group):
    return [trajectory.reward.value for trajectory in group.trajectories]


def rewards_of(group):
    return [(trajectory.reward.kind, trajectory.reward.reason) for trajectory in group.trajectories]


def test_scores_are_kept_by_name_and_added_by_weight(scored):
    group = scored(
        a=([Score.of(1), Score.of(0)], 1.0),
        b=([Score.of(0.5), Score.of(0.25, "half off")], 0.4),
    )
    assert values(group) == pytest.approx([1.2, 0.1])
    assert group.trajectories[1].scores == {"a": Score.of(0.0), "b": Score.of(0.25, "half off")}
    assert [trajectory.index for trajectory in group.trajectories] == [0, 1]


def test_a_weight_of_zero_and_a_negative_one_count_as_they_are(scored):
    assert values(scored(a=([Score.of(1)] * 2, 0.0), b=([Score.of(1)] * 2, -0.5))) == [-0.5, -0.5]


@pytest.mark.parametrize(("step", "value"), [(0, 1.0), (5, 0.5), (10, 0.0), (99, 0.0)])
def test_weights_are_those_of_the_step(scored, step, value):
    weight = Schedule(kind="linear", start=1.0, end=0.0, steps=10)
    assert values(scored(step, a=([Score.of(1)] * 2, weight))) == [value, value]


def test_a_reward_sees_the_step_and_the_whole_group(make_group, make_trajectory):
    class Ranking:
        async def score(self, group, context):
            return [Score.of(context.step + len(group.trajectories) * t.index) for t in group.trajectories]

    group = make_group(make_trajectory("7", index=0), make_trajectory("8", index=1))
    term = WeightedReward(name="rank", reward=Ranking(), weight=lambda step: 1.0)
    assert values(asyncio.run(score_group(group, [term], RewardContext(step=40)))) == [40.0, 42.0]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (ValueError("broken pipe"), "ValueError: broken pipe"),
        (AssertionError(), "AssertionError: "),
        ([Score.of(1)], "must return a list of 2 Scores, got [Score("),
        ([Score.of(1)] * 3, "must return a list of 2 Scores, got [Score("),
        ([], "must return a list of 2 Scores, got []"),
        (None, "must return a list of 2 Scores, got None"),
        (1.0, "must return a list of 2 Scores, got 1.0"),
        ([1.0, 0.0], "must be a Score, got 1.0"),
        ([None, None], "must be a Score, got None"),
        ([Score.of(float("nan"))] * 2, "value is nan"),
        ([Score.of(float("inf"))] * 2, "value is inf"),
        ([Score.error("row 3: no choice")] * 2, "row 3: no choice"),
    ],
)
def test_a_reward_that_fails_is_an_error_and_not_a_zero(scored, result, reason):
    score = scored(bad=result).trajectories[0].scores["bad"]
    assert score.kind is ScoreKind.ERROR
    assert score.reason.startswith(reason)
    assert score.value != score.value  # NaN: there is no number to train on by mistake


@pytest.mark.parametrize("value", ["1.0", None, [1.0], 1j])
def test_a_score_whose_value_is_no_number_is_an_error(scored, value):
    result = [Score(kind=ScoreKind.VALUE, value=value)] * 2
    assert [kind for kind, _ in rewards_of(scored(bad=result))] == [ScoreKind.ERROR] * 2


def test_what_a_reward_returned_is_quoted_in_part(scored):
    assert len(scored(bad=["x" * 10_000] * 2).trajectories[0].scores["bad"].reason) < 300


def test_an_error_makes_the_combined_reward_an_error_naming_the_reward(scored):
    group = scored(good=[Score.of(1), Score.of(1)], bad=ValueError("broken pipe"))
    assert rewards_of(group) == [(ScoreKind.ERROR, "bad: ValueError: broken pipe")] * 2
    assert group.trajectories[0].scores["good"] == Score.of(1)


def test_an_error_of_one_sibling_is_not_one_of_the_other(scored):
    group = scored(a=[Score.error("odd"), Score.of(1)], b=[Score.of(1), Score.of(1)])
    assert rewards_of(group) == [(ScoreKind.ERROR, "a: odd"), (ScoreKind.VALUE, "")]
    assert values(group)[1] == 2.0


def test_an_error_counts_even_at_weight_zero(scored):
    group = scored(a=([Score.error("odd")] * 2, 0.0), b=[Score.of(1)] * 2)
    assert rewards_of(group) == [(ScoreKind.ERROR, "a: odd")] * 2


def test_a_reward_that_does_not_apply_is_left_out(scored):
    group = scored(a=([Score.of(1), NA], 2.0), b=([NA, Score.of(0.5)], 4.0))
    assert values(group) == [2.0, 2.0]
    assert group.trajectories[0].scores["b"] is NA


def test_where_none_applies_the_combined_reward_does_not_apply(scored):
    assert rewards_of(scored(a=[NA, NA])) == [(ScoreKind.NOT_APPLICABLE, "no reward applies to this row")] * 2
    assert combine({}, {}).kind is ScoreKind.NOT_APPLICABLE


def test_scoring_changes_nothing_but_scores(scored, make_group, make_trajectory):
    before = make_group(make_trajectory("7", index=0), make_trajectory("8", index=1))
    after = scored(a=[Score.of(1)] * 2)
    assert after.sample == before.sample
    assert [trajectory.turns for trajectory in after.trajectories] == [t.turns for t in before.trajectories]


def test_a_function_of_one_trajectory_is_lifted_to_its_group(make_group, make_trajectory):
    group = make_group(make_trajectory("7"), make_trajectory("8"), answer="8")
    scores = score_each(group, lambda trajectory, sample: Score.of(trajectory.answer == sample.gold.answer))
    assert [score.value for score in scores] == [0.0, 1.0]


def test_cancellation_is_passed_on(make_group, make_trajectory):
    class Cancelled:
        async def score(self, group, context):
            raise asyncio.CancelledError

    term = WeightedReward(name="a", reward=Cancelled(), weight=lambda step: 1.0)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(score_group(make_group(make_trajectory("7")), [term], RewardContext(step=0)))


# Several rewards


class Meeting:
    """Scores once the other one has begun too."""

    def __init__(self, mine, other):
        self.mine, self.other = mine, other

    async def score(self, group, context):
        self.mine.set()
        await self.other.wait()
        return [Score.of(1)] * len(group.trajectories)


def terms(**rewards):
    return [WeightedReward(name=name, reward=reward, weight=lambda step: 1.0) for name, reward in rewards.items()]


def score(group, rewards, timeout_s=60):
    """asyncio's own limit, so that rewards that wait for one another in vain fail the test."""
    return asyncio.run(asyncio.wait_for(score_group(group, rewards, RewardContext(step=0)), timeout_s))


def test_rewards_of_a_group_run_at_once(make_group, make_trajectory):
    a, b = asyncio.Event(), asyncio.Event()
    group = score(make_group(make_trajectory("7")), terms(a=Meeting(a, b), b=Meeting(b, a)))
    assert values(group) == [2.0]


def test_scores_keep_the_order_of_the_rewards_however_long_each_takes(make_group, make_trajectory):
    class After:
        def __init__(self, before, done):
            self.before, self.done = before, done

        async def score(self, group, context):
            if self.before:
                await self.before.wait()
            self.done.set()
            return [Score.of(1)]

    events = [asyncio.Event() for _ in range(3)]
    rewards = terms(c=After(events[1], events[0]), a=After(events[2], events[1]), b=After(None, events[2]))
    group = score(make_group(make_trajectory("7")), rewards)
    assert list(group.trajectories[0].scores) == ["c", "a", "b"]


def test_one_that_fails_neither_stops_nor_changes_the_others(make_group, make_trajectory):
    a, b = asyncio.Event(), asyncio.Event()
    broken = Fixed(ValueError("broken pipe"))
    group = score(make_group(make_trajectory("7")), terms(x=broken, a=Meeting(a, b), y=broken, b=Meeting(b, a)))
    kinds = {name: score.kind for name, score in group.trajectories[0].scores.items()}
    error, value = ScoreKind.ERROR, ScoreKind.VALUE
    assert kinds == {"x": error, "a": value, "y": error, "b": value}


def test_what_waits_is_cancelled_with_its_group_and_may_clean_up(make_group, make_trajectory):
    ended = []

    class Waiting:
        def __init__(self, name):
            self.name = name

        async def score(self, group, context):
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append(self.name)

    with pytest.raises(TimeoutError):
        score(make_group(make_trajectory("7")), terms(a=Waiting("a"), b=Waiting("b")), timeout_s=0.01)
    assert sorted(ended) == ["a", "b"]


TOGETHER = """
import time
from pathlib import Path

def meet(completions, mine, other, **kwargs):
    Path(mine).touch()
    while not Path(other).exists():
        time.sleep(0.01)
    return [1.0] * len(completions)
"""


def test_rewards_in_processes_of_their_own_run_at_once(tmp_path, make_group, make_trajectory):
    file, a, b = tmp_path / "together.py", str(tmp_path / "a"), str(tmp_path / "b")
    file.write_text(TOGETHER)
    first, second = (
        build_reward(f"{file}:meet", {"mine": mine, "other": other, "timeout_s": 60.0}, "rewards.0")
        for mine, other in [(a, b), (b, a)]
    )
    assert values(score(make_group(make_trajectory("7")), terms(a=first, b=second), timeout_s=200)) == [2.0]
