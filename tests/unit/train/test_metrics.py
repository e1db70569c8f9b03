"""Scores are averaged where they apply; errors and flags are counted apart."""

from dataclasses import replace

from mmrl.train.metrics import group_metrics
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
