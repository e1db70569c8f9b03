"""Strategies of one look, by hand."""

import math

import pytest

from mmrl.errors import ConfigError
from mmrl.scaling.named import NAMES, build_strategy
from mmrl.scaling.one_look import BestOfK, ConfidenceVote, Greedy, Vote, confidence


@pytest.mark.parametrize("name", NAMES)
def test_every_named_strategy_looks_first(name):
    assert build_strategy(name, {}, "--strategy").look([]).temperatures


@pytest.mark.parametrize(
    ("strategy", "temperatures"),
    [
        (Greedy(), (0.0,)),
        (Vote(samples=3, temperature=0.7), (0.7,) * 3),
        (ConfidenceVote(samples=2), (1.0,) * 2),
        (BestOfK(samples=4), (1.0,) * 4),
    ],
)
def test_one_look_and_no_more(gave, strategy, temperatures):
    assert strategy.look([]).temperatures == temperatures
    assert strategy.look([gave(*"A" * len(temperatures))]) is None


def test_samples_without_an_answer_have_no_vote(gave):
    assert Vote().decide([gave(None, None, "A")]).answer == "A"
    assert Vote().decide([gave(None, None)]).answer is None


def test_confidence_is_the_geometric_mean_of_token_probabilities(gave):
    trajectory = gave(("A", math.log(0.25), math.log(1.0))).trajectories[0]
    assert confidence(trajectory) == pytest.approx(0.5)


def test_a_confidence_vote_adds_weights(gave):
    """0.9 for A against 0.6 + 0.5 for B is B; 0.9 against 0.4 + 0.3 is A."""
    sure = ("A", math.log(0.9))
    assert ConfidenceVote().decide([gave(sure, ("B", math.log(0.6)), ("b", math.log(0.5)))]).answer == "B"
    assert ConfidenceVote().decide([gave(("B", math.log(0.4)), ("b", math.log(0.3)), sure)]).answer == "A"
    assert ConfidenceVote().decide([gave((None, math.log(0.99)), ("B", math.log(0.1)))]).answer == "B"


def test_the_best_of_k_is_the_surest_with_an_answer(gave):
    assert BestOfK().decide([gave(("A", -2.0), ("B", -0.5), (None, -0.1))]).answer == "B"
    assert BestOfK().decide([gave(("A", -0.5), ("B", -0.5))]).answer == "A"


def test_the_best_of_k_by_a_function_of_ones_own(gave, tmp_path):
    (tmp_path / "mine.py").write_text("def longest(trajectory):\n    return len(trajectory.answer)\n")
    strategy = build_strategy("best-of-k", {"by": f"{tmp_path}/mine.py:longest"}, "--strategy")
    assert strategy.decide([gave(("A", -0.1), ("long", -5.0), ("B", -1.0))]).answer == "long"


def test_a_score_that_is_nowhere_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"did you mean 'confidence'"):
        build_strategy("best-of-k", {"by": "mmrl.scaling.one_look:confidenc"}, "--strategy")
