"""The clipped surrogate and the sequence ratio against float64 autograd of the formulas of the papers."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from mmrl.algo.surrogate import MAX_LOGRATIO, clip_surrogate, sequence_logratio

LOGRATIOS = st.floats(-3, 3)
ADVANTAGES = st.floats(-3, 3).filter(lambda a: a == 0 or abs(a) > 1e-3)
RANGES = st.tuples(st.floats(0, 0.9), st.floats(0, 2))


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def textbook(logratio, advantage, low, high, dual):
    """-min(r A, clip(r) A) (arXiv 1707.06347, eq. 7), for A < 0 -max(that, dual A) (arXiv 1912.09729, eq. 5)."""
    ratio = logratio.exp()
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if dual is None:
        return -objective
    return -torch.where(advantage < 0, torch.maximum(objective, dual * advantage), objective)


def one(logratio, advantage, low=0.2, high=0.2, dual=None):
    """(loss, weight) of a single target."""
    loss_N, weight_N = clip_surrogate(double(logratio), double(advantage), low=low, high=high, dual=dual)
    return loss_N.item(), weight_N.item()


@given(LOGRATIOS, ADVANTAGES, RANGES, st.none() | st.floats(1.01, 8))
def test_value_and_weight_equal_autograd_of_the_textbook(value, advantage, limits, dual):
    low, high = limits
    corners = [1 - low, 1 + high, *([dual] if dual else [])]
    assume(all(abs(math.exp(value) - corner) > 1e-6 for corner in corners))  # where there is a derivative
    logratio = double(value).requires_grad_()
    expected = textbook(logratio, double(advantage), low, high, dual)
    expected.backward()
    loss, weight = one(value, advantage, low, high, dual)
    assert loss == pytest.approx(expected.item(), rel=1e-12, abs=1e-15)
    assert weight == pytest.approx(logratio.grad.item(), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "weight"),
    [
        (1.25, 1.0, -1.25, -1.25),  # above 1 + low, below 1 + high
        (1.35, 1.0, -1.3, 0.0),  # rose enough
        (0.5, 1.0, -0.5, -0.5),  # fell although it is good: pulled back without limit
        (0.85, -1.0, 0.85, 0.85),
        (0.7, -1.0, 0.8, 0.0),  # fell enough
        (5.0, -1.0, 5.0, 5.0),  # rose although it is bad
        (5.0, 0.0, 0.0, 0.0),
    ],
)
def test_low_limits_bad_tokens_and_high_limits_good_ones(ratio, advantage, loss, weight):
    assert one(math.log(ratio), advantage, low=0.2, high=0.3) == pytest.approx((loss, weight))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "weight"),
    [
        (2.9, -2.0, 5.8, 5.8),
        (3.1, -2.0, 6.0, 0.0),
        (0.5, -2.0, 1.6, 0.0),
        (9.0, 2.0, -2.4, 0.0),
        (0.1, 2.0, -0.2, -0.2),
    ],
)
def test_dual_clip_bounds_the_loss_of_bad_tokens_only(ratio, advantage, loss, weight):
    assert one(math.log(ratio), advantage, dual=3.0) == pytest.approx((loss, weight))


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_an_unchanged_policy_has_the_plain_policy_gradient_even_in_a_range_of_no_width(advantage):
    assert one(0.0, advantage, low=0.0, high=0.0) == (-advantage, -advantage)


@pytest.mark.parametrize(("ratio", "advantage"), [(0.5, 1.0), (0.5, -1.0), (1.5, 1.0), (1.5, -1.0)])
def test_at_a_corner_the_weight_is_one_of_the_two_slopes(ratio, advantage):
    loss, weight = one(math.log(ratio), advantage, low=0.5, high=0.5)
    assert loss == pytest.approx(-ratio * advantage)
    assert any(weight == pytest.approx(slope) for slope in (0.0, -ratio * advantage))


@pytest.mark.parametrize("dual", [None, 3.0])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("logratio", [-1e6, -100.0, 100.0, 1e6])
def test_extreme_log_ratios_neither_overflow_nor_move_the_policy(logratio, advantage, dual):
    loss, weight = one(logratio, advantage, dual=dual)
    assert math.isfinite(loss)
    assert abs(loss) <= 2 * math.exp(MAX_LOGRATIO)
    assert weight == 0


def test_nothing_is_lost_up_to_the_clamp():
    assert one(MAX_LOGRATIO, -1.0) == pytest.approx((math.exp(MAX_LOGRATIO), math.exp(MAX_LOGRATIO)))
    assert one(-MAX_LOGRATIO, 1.0) == pytest.approx((-math.exp(-MAX_LOGRATIO), -math.exp(-MAX_LOGRATIO)))


def test_the_sequence_ratio_is_each_trajectorys_mean_whatever_its_number_and_order():
    trajectory_N = torch.tensor([40, 7, 40, 7, 40, 1])
    found = sequence_logratio(double(0.3, 1.0, 0.6, -2.0, 0.0, 5.0), trajectory_N)
    torch.testing.assert_close(found, double(0.3, -0.5, 0.3, -0.5, 0.3, 5.0))


def test_the_sequence_ratio_of_nothing_is_nothing():
    assert len(sequence_logratio(double(), torch.tensor([], dtype=torch.long))) == 0


@given(
    st.lists(st.tuples(ADVANTAGES, st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=5)), min_size=1, max_size=5),
    st.tuples(st.floats(0, 0.4), st.floats(0, 0.6)),
)
def test_the_sequence_surrogate_equals_autograd_of_gspo(trajectories, limits):
    """mean over trajectories of -min(s A, clip(s) A), s = exp(mean log-ratio) (arXiv 2507.18071, eq. 5 and 7)."""
    low, high = limits
    for _, values in trajectories:
        ratio = math.exp(sum(values) / len(values))
        assume(min(abs(ratio - 1 + low), abs(ratio - 1 - high)) > 1e-6)
    leaves = [double(*values).requires_grad_() for _, values in trajectories]
    terms = [
        textbook(leaf.mean(), torch.tensor(advantage, dtype=torch.float64), low, high, None)
        for leaf, (advantage, _) in zip(leaves, trajectories, strict=True)
    ]
    expected = torch.stack(terms).mean()
    expected.backward()

    length_B = torch.tensor([len(values) for _, values in trajectories])
    trajectory_N = torch.arange(len(trajectories)).repeat_interleave(length_B)
    advantages_N = double(*[advantage for advantage, _ in trajectories])[trajectory_N]
    logratio_N = sequence_logratio(torch.cat(leaves).detach(), trajectory_N)
    loss_N, weight_N = clip_surrogate(logratio_N, advantages_N, low=low, high=high)
    seq_mean_N = 1 / (len(trajectories) * length_B[trajectory_N].double())
    assert (seq_mean_N * loss_N).sum().item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    torch.testing.assert_close(seq_mean_N * weight_N, torch.cat([leaf.grad for leaf in leaves]), rtol=1e-9, atol=1e-12)
