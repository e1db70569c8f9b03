"""Ladders against the published schedule."""

import pytest

from mmrl.errors import ConfigError
from mmrl.scaling.ladders import ResolutionLadder, SparseToDense
from mmrl.scaling.named import build_strategy

AGREED, TIED = ("B",) * 5, ("C", "A", "B", "A", "B")


def climb(strategy, *rungs):
    """The looks that a strategy takes at rungs that gave these rounds, until it is decided."""
    rounds, looks = [], []
    while (look := strategy.look(rounds)) is not None:
        looks.append(look)
        rounds.append(rungs[len(rounds)])
    return looks, strategy.decide(rounds)


def frames(looks):
    return [look.media["video"]["frames"] for look in looks]


def test_the_published_temperatures():
    look = SparseToDense().look([])
    assert look.temperatures == pytest.approx((0.8, 0.95, 1.1, 1.25, 1.4))
    assert SparseToDense(increment=0, temperature=1).look([]).temperatures == (1.0,) * 5


def test_unanimity_ends_the_ladder_at_once(gave):
    looks, winner = climb(SparseToDense(), gave(*AGREED))
    assert frames(looks) == [32]
    assert winner.answer == "B"


def test_one_dissent_doubles_the_frames_up_to_the_densest(gave):
    dissent = gave("B", "B", "B", "B", "C")
    looks, winner = climb(SparseToDense(), dissent, dissent, gave(*TIED))
    assert frames(looks) == [32, 64, 128]
    assert winner.answer == "A"


def test_samples_of_earlier_rungs_are_dropped(gave):
    strategy = SparseToDense(start=4, densest=8, samples=3)
    _, winner = climb(strategy, gave("A", "A", "B"), gave("B", "C", "C"))
    assert winner.answer == "C"  # pooled votes would be three for... two answers alike; the last rung alone decides


def test_the_last_rung_is_the_last_doubling_within_the_cap(gave):
    looks, _ = climb(SparseToDense(start=32, densest=100), gave(*TIED), gave(*TIED))
    assert [look.media["video"] for look in looks] == [{"frames": 32, "densest": 64}, {"frames": 64, "densest": 64}]


def test_extraction_failures_are_a_value(gave):
    looks, winner = climb(SparseToDense(), gave(*[None] * 5))
    assert (len(looks), winner.answer) == (1, None)
    looks, winner = climb(
        SparseToDense(start=4, densest=8), gave("B", "B", "B", "B", None), gave(None, "A", "B", "A", None)
    )
    assert (len(looks), winner.answer) == (2, None)


def test_one_rung_is_the_plain_vote_over_the_last_rungs_look(gave):
    ladder, dense = SparseToDense(start=4, densest=16), SparseToDense(start=16, densest=16)
    looks, _ = climb(ladder, gave(*TIED), gave(*TIED), gave(*TIED))
    assert looks[-1] == dense.look([])
    assert dense.look([gave(*TIED)]) is None


def test_a_resolution_ladder_doubles_both_sides():
    strategy = ResolutionLadder(start_pixels=3136, max_pixels=60_000)
    assert [media for _, media in strategy.rungs()] == [
        {"image": {"min_pixels": 3136, "max_pixels": pixels}} for pixels in (3136, 12544, 50176)
    ]


@pytest.mark.parametrize(
    ("use", "fields", "told"),
    [
        ("sparse-to-dense", {"start": 64, "densest": 32}, r"start \(64\) may not be larger than densest \(32\)"),
        ("sparse-to-dense", {"samples": 0}, "samples: Input should be greater than or equal to 1"),
        ("sparse-to-dense", {"sampels": 3}, "did you mean 'samples'"),
        ("resolution-ladder", {"start_pixels": 9, "max_pixels": 3}, "may not be larger than max_pixels"),
        ("vote", {"temperature": float("nan")}, "temperature"),
        ("spare-to-dense", {}, "did you mean 'sparse-to-dense'"),
        ("mmrl.scaling.strategy:Look", {"temperatures": [1.0]}, "it has no 'look'"),
    ],
)
def test_what_cannot_be_built_says_why(use, fields, told):
    with pytest.raises(ConfigError, match=told) as caught:
        build_strategy(use, fields, "--strategy")
    assert str(caught.value).startswith("--strategy")
    assert "\n" not in str(caught.value)
