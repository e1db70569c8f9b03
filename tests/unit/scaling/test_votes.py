"""Which answers are one vote."""

import pytest

from mmrl.scaling.votes import majority, tally, unanimous, votes_of


@pytest.mark.parametrize("same", [("B", "b", "(B)", "B.", "b) two cats", " B: two  cats"), ("Red  car", "red car")])
def test_spellings_of_one_answer_are_one_vote(gave, same):
    assert len(set(votes_of(gave(*same).trajectories))) == 1


@pytest.mark.parametrize(
    "different",
    [
        ("a cat", "A"),
        ("a.m.", "A"),
        ("7", "8"),
        ("", None),
        ("Both", "B"),
        ("", "x"),
        ("x: 3", "x: 5", "X. Y."),
        ("B. two cats", "B. three cats", "B"),  # the letter alone could be either
        ("A. two cats", "B. two cats"),
    ],
)
def test_different_answers_are_different_votes(gave, different):
    assert len(set(votes_of(gave(*different).trajectories))) == len(different)


def test_the_order_of_answers_does_not_change_what_is_one_vote(gave):
    answers = ("B", "b. two", "B. three", "(b)", "B: two")
    for shift in range(len(answers)):
        turned = answers[shift:] + answers[:shift]
        votes = dict(zip(turned, votes_of(gave(*turned).trajectories), strict=True))
        assert votes["B"] == votes["(b)"]
        assert votes["b. two"] == votes["B: two"]
        assert len(set(votes.values())) == 3


def test_the_first_spelling_stands_for_an_answer(gave):
    trajectories = gave("C", "(b)", "B", "b. two").trajectories
    assert majority(trajectories).index == 1
    assert tally(trajectories) == {"(b)": 3, "C": 1}


def test_of_equally_common_answers_the_one_seen_first_wins(gave):
    assert majority(gave("C", "A", "B", "A", "B").trajectories).answer == "A"
    assert majority(gave("B", "A").trajectories).answer == "B"


def test_no_answer_is_a_vote(gave):
    assert majority(gave(None, None, "A").trajectories).answer is None
    assert tally(gave(None, "A", None).trajectories) == {"": 2, "A": 1}
    assert unanimous(gave(None, None).trajectories)
    assert not unanimous(gave("A", None).trajectories)
