"""Known answers on two groups of four, rewards [1, 0, 0, 0] and [1, 1, 1, 0]; those of TRL and verl agree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.algo.advantage import group_advantages, shuffled

REWARDS = np.array([1, 0, 0, 0, 1, 1, 1, 0.0])
GROUPS = np.array([0, 0, 0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("centre", "scale", "known"),
    [
        ("mean", "std_group", [1.5, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5, -1.5]),
        ("mean", "none", [0.75, -0.25, -0.25, -0.25, 0.25, 0.25, 0.25, -0.75]),
        ("loo", "none", [1.0, -1 / 3, -1 / 3, -1 / 3, 1 / 3, 1 / 3, 1 / 3, -1.0]),
        ("mean", "std_batch", [1.4031, -0.4677, -0.4677, -0.4677, 0.4677, 0.4677, 0.4677, -1.4031]),
        ("mean", "mean_group", [3.0, -1.0, -1.0, -1.0, 1 / 3, 1 / 3, 1 / 3, -1.0]),
        ("none", "none", REWARDS.tolist()),
    ],
)
def test_known_answers(centre, scale, known):
    found = group_advantages(REWARDS, GROUPS, centre=centre, scale=scale, eps=0.0)
    np.testing.assert_allclose(found, known, atol=5e-5)


def test_a_reward_that_is_missing_is_left_out_of_its_group_and_gets_nothing():
    rewards = np.array([1.0, np.nan, 0.0, 0.0])
    found = group_advantages(rewards, np.zeros(4, int), scale="none")
    np.testing.assert_allclose(found, [2 / 3, 0, -1 / 3, -1 / 3])


@pytest.mark.parametrize("scale", ["none", "std_group", "std_batch", "mean_group"])
@pytest.mark.parametrize("rewards", [[0.5, 0.5, 0.5], [np.nan, np.nan, 1.0], [0.0, 0.0, 0.0]])
def test_a_group_that_tells_nothing_gets_nothing(rewards, scale):
    assert group_advantages(np.array(rewards), np.zeros(3, int), scale=scale).tolist() == [0, 0, 0]


REWARD_LISTS = st.lists(st.floats(-10, 10), min_size=2, max_size=24)


@given(REWARD_LISTS, st.integers(1, 4), st.randoms(use_true_random=False))
def test_advantages_of_a_group_sum_to_zero_and_do_not_depend_on_its_place(rewards, groups, random):
    rewards, group = np.array(rewards), np.arange(len(rewards)) % groups
    found = group_advantages(rewards, group)
    for number in range(groups):
        assert abs(found[group == number].sum()) < 1e-6
    order = np.array(random.sample(range(len(rewards)), len(rewards)))
    again = group_advantages(rewards[order], group[order] * 7 + 3)
    np.testing.assert_allclose(again, found[order], rtol=1e-6, atol=1e-9)


@given(REWARD_LISTS, st.integers(0, 100))
def test_shuffling_deals_the_same_advantages_to_scored_trajectories_only(rewards, seed):
    rewards = np.array([*rewards, np.nan])
    advantages = np.arange(1.0, len(rewards) + 1)
    advantages[-1] = 0.0
    dealt = shuffled(advantages, rewards, seed)
    assert sorted(dealt) == sorted(advantages)
    assert dealt[-1] == 0
    assert (dealt == shuffled(advantages, rewards, seed)).all()
