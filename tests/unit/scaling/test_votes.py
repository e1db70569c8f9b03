"""Which answers are one vote."""

import pytest

from mmrl.scaling.votes import majority, tally, unanimous, vote_of


@pytest.mark.parametrize("same", [("B", "b", "(B)", "B.", "b) two cats", " B: two  cats"), ("Red  car", "red car")])
def test_spellings_of_one_answer_are_one_vote(gave, same):
    assert len({vote_of(t) for t in gave(*same).trajectories}) == 1


@pytest.mark.parametrize("different", [("a cat", "A"), ("a.m.", "A"), ("7", "8"), ("", None), ("Both", "B"), ("", "x")])
def test_different_answers_are_different_votes(gave, different):
    assert len({vote_of(t) for t in gave(*different).trajectories}) == 2


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
