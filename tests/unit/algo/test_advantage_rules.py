"""Advantages against the statistics module, and the groups that must get exactly nothing."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.algo.advantage import group_advantages

EPS = 1e-4
CENTRES = pytest.mark.parametrize("centre", ["mean", "loo", "none"])
SCALES = pytest.mark.parametrize("scale", ["none", "std_group", "std_batch", "mean_group"])
BATCHES = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([math.nan, 0.0, 0.25, 0.5, 1.0, 1.5])), min_size=1, max_size=16
)
"""(group, reward) of each trajectory; sums of these rewards are exact."""


def slow(batch, centre, scale):
    """Advantages one trajectory at a time."""
    scored = [reward for _, reward in batch if not math.isnan(reward)]
    result = []
    for i, (group, reward) in enumerate(batch):
        others = [r for j, (g, r) in enumerate(batch) if j != i and g == group and not math.isnan(r)]
        if math.isnan(reward) or not others:
            result.append(0.0)
            continue
        members = [reward, *others]
        baseline = {"mean": statistics.fmean(members), "loo": statistics.fmean(others), "none": 0.0}[centre]
        divisor = {
            "none": 1.0,
            "std_group": statistics.stdev(members) + EPS,
            "std_batch": statistics.stdev(scored) + EPS,
            "mean_group": statistics.fmean(members) + EPS,
        }[scale]
        result.append((reward - baseline) / divisor)
    return result


@CENTRES
@SCALES
@given(BATCHES)
def test_every_centre_and_scale_equals_the_slow_way(centre, scale, batch):
    group_B, rewards_B = (np.array(column) for column in zip(*batch, strict=True))
    found = group_advantages(rewards_B, group_B * 5 + 2, centre=centre, scale=scale, eps=EPS)
    np.testing.assert_allclose(found, slow(batch, centre, scale), rtol=1e-9, atol=1e-9)


@CENTRES
@SCALES
def test_the_unscored_and_the_lonely_get_nothing_and_an_empty_batch_is_empty(centre, scale):
    options = {"centre": centre, "scale": scale}
    found = group_advantages(np.array([1.0, np.nan, np.nan, np.nan, 5.0]), np.array([0, 0, 1, 1, 2]), **options)
    assert found.tolist() == [0, 0, 0, 0, 0]
    assert group_advantages(np.array([]), np.array([], dtype=int), **options).tolist() == []


@pytest.mark.parametrize("centre", ["mean", "loo"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1.4])
def test_equal_rewards_give_exactly_nothing(centre, reward):
    """Exactly: clip_fraction and anything else that asks `advantage != 0` must not see such a group."""
    rewards_B, group_B = np.array([reward] * 3 + [0.0, 1.0]), np.array([0, 0, 0, 1, 1])
    for scale in ("none", "std_group", "std_batch", "mean_group"):
        found = group_advantages(rewards_B, group_B, centre=centre, scale=scale)
        assert found[:3].tolist() == [0.0] * 3
