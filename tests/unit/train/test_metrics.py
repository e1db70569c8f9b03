"""Scores are averaged where they apply, errors and flags are counted apart; a gap is measured by its places."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mmrl.train.metrics import gap_metrics, gap_warning, group_metrics, lagged_bound, policy_lag
from mmrl.train.rows import TurnTargets
from mmrl.types import Score


def scored(make_group, make_trajectory, *scores):
    trajectories = [replace(make_trajectory("7"), scores={"box": score}, reward=score) for score in scores]
    return make_group(*trajectories)


def test_errors_and_rows_that_do_not_apply_are_no_zeros(make_group, make_trajectory):
    scores = Score.of(1.0), Score.of(0.5), Score.error("bad row"), Score.not_applicable("no box")
    metrics = group_metrics([scored(make_group, make_trajectory, *scores)])
    assert metrics["score/box"] == metrics["reward"] == 0.75
    assert metrics["score_errors/box"] == 1.0


def test_flags_of_a_score_are_counted_over_all_groups(make_group, make_trajectory):
    first = scored(make_group, make_trajectory, Score.of(1.0, flag="clipped"), Score.of(1.0))
    second = scored(make_group, make_trajectory, Score.of(0.0, flag="clipped"), Score.of(0.0, flag="guess"))
    metrics = group_metrics([first, second])
    flags = {name: value for name, value in metrics.items() if name.startswith("score_flags/")}
    assert flags == {"score_flags/box/clipped": 2.0, "score_flags/box/guess": 1.0}


def test_nothing_is_counted_where_nothing_is_flagged(make_group, make_trajectory):
    metrics = group_metrics([scored(make_group, make_trajectory, Score.of(1.0))])
    assert not [name for name in metrics if name.startswith(("score_flags/", "score_errors/"))]


# Three targets behind nothing, one behind a picture, two behind a picture and a clip.
TURNS = [
    TurnTargets(length=3, turn=1, kinds=frozenset({"text"}), version=7),
    TurnTargets(length=1, turn=1, kinds=frozenset({"image"}), version=6),
    TurnTargets(length=2, turn=2, kinds=frozenset({"image", "video"}), version=4),
]
GAP = np.array([0.1, -0.2, 0.0, 0.3, -1.0, 0.2])


def test_the_gap_has_known_values_for_every_kind_and_turn():
    means = {"text": 0.1, "image": 0.5, "video": 0.6, "turn_1": 0.15, "turn_2": 0.6}
    tops = {"text": 0.2, "image": 1.0, "video": 1.0, "turn_1": 0.3, "turn_2": 1.0}
    metrics = gap_metrics(GAP, TURNS)
    kl = sum(math.exp(gap) - gap - 1 for gap in GAP) / 6
    expected = {"engine_gap/mean": 0.3, "engine_gap/max": 1.0, "engine_gap/kl": kl}
    expected |= {f"engine_gap/{label}/mean": value for label, value in means.items()}
    expected |= {f"engine_gap/{label}/max": value for label, value in tops.items()}
    assert metrics == pytest.approx(expected)


def test_the_kl_estimate_is_near_the_divergence_of_the_engine_from_the_trainer():
    """It is 0.193 here; the other way round it would be 0.223."""
    engine, trainer = np.array([0.8, 0.2]), np.array([0.5, 0.5])
    engine_to_trainer = float((engine * np.log(engine / trainer)).sum())
    drawn = np.repeat([0, 1], (80_000, 20_000))
    gap_N = np.log(trainer / engine)[drawn]
    turns = [TurnTargets(length=len(drawn), turn=1, kinds=frozenset({"text"}), version=0)]
    assert gap_metrics(gap_N, turns)["engine_gap/kl"] == pytest.approx(engine_to_trainer, abs=1e-9)


def test_a_huge_gap_does_not_overflow():
    assert math.isfinite(gap_metrics(np.array([1e4, -1e4, 0.0, 0.0, 0.0, 0.0]), TURNS)["engine_gap/kl"])


def test_a_warning_names_the_worst_kind_and_turn():
    metrics = gap_metrics(GAP, TURNS)
    warning = gap_warning(metrics, 0.05)
    assert "0.3 off the trainer's on average (max_engine_gap is 0.05)" in warning
    assert "behind video (0.6) and in turn 2 (0.6)" in warning
    assert gap_warning(metrics, 0.4) is None


def test_a_gap_that_is_no_number_is_told():
    assert gap_warning(gap_metrics(np.full(6, np.nan), TURNS), 0.05)


@pytest.mark.parametrize(
    ("earlier", "bound", "name"),
    [
        ([], math.inf, "the bound of the first 5 steps whose rollouts lag"),
        ([0.1] * 4, math.inf, "the bound of the first 5 steps whose rollouts lag"),
        ([0.1, 0.2, 9.0, 0.1, 0.2], 0.6, "3 times the median of the steps before"),
        ([0.01] * 5, 0.05, "max_engine_gap"),
    ],
)
def test_where_rollouts_lag_a_gap_is_compared_with_those_before(earlier, bound, name):
    assert lagged_bound(0.05, earlier) == (pytest.approx(bound), name)


def test_the_lag_is_that_of_targets_not_of_turns():
    assert policy_lag(TURNS, 7) == {"policy_lag": pytest.approx((3 * 0 + 1 * 1 + 2 * 3) / 6)}
    assert policy_lag([replace(turn, version=None) for turn in TURNS], 7) == {}
