import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.algo.aggregate import coefficients

MODES = ("token_mean", "seq_mean", "const", "seq_sum", "token_sum", "question_mean")


def plain(mode, losses, groups, length):
    """The step's loss from nested lists, one of token losses for each trajectory."""
    every = [loss for trajectory in losses for loss in trajectory]
    if mode == "token_mean":
        return sum(every) / len(every)
    if mode == "token_sum":
        return sum(every)
    if mode == "const":
        return sum(sum(trajectory) / length for trajectory in losses) / len(losses)
    if mode == "seq_sum":
        return sum(sum(trajectory) for trajectory in losses) / len(losses)
    if mode == "seq_mean":
        return sum(sum(trajectory) / len(trajectory) for trajectory in losses) / len(losses)
    total = 0.0
    for group in set(groups):
        tokens = [loss for trajectory, g in zip(losses, groups, strict=True) if g == group for loss in trajectory]
        total += sum(tokens) / len(tokens)
    return total / len(set(groups))


@pytest.mark.parametrize("mode", MODES)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.floats(-5, 5), min_size=1, max_size=6)), min_size=1, max_size=8)
)
def test_coefficients_add_up_to_the_plain_loss(mode, trajectories):
    groups = [10 * group + 7 for group, _ in trajectories]  # numbers of groups need not follow each other
    losses = [tokens for _, tokens in trajectories]
    trajectory_N = np.repeat(np.arange(len(losses)), [len(tokens) for tokens in losses])
    coef_N = coefficients(mode, trajectory_N, np.array(groups), 11)
    found = float((coef_N * np.concatenate(losses)).sum())
    assert found == pytest.approx(plain(mode, losses, groups, 11), rel=1e-9, abs=1e-9)


def test_const_without_a_length_is_refused():
    with pytest.raises(ValueError, match="length"):
        coefficients("const", np.zeros(2, int), np.zeros(1, int))
