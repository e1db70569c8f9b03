"""The order of rows is reproducible, resumes from one number, and keeps to the weights of files."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.data.sampler import Sampler, whole_weights


def test_every_epoch_is_another_permutation_of_the_rows():
    sampler = Sampler(20, seed=3)
    first, second = ([sampler.draw() for _ in range(20)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))


def test_the_order_depends_on_the_seed_alone():
    def order(seed):
        sampler = Sampler(20, seed)
        return [sampler.draw() for _ in range(20)]

    assert order(3) == order(3)
    assert order(3) != order(4)


@pytest.mark.parametrize("drawn", [0, 5, 7, 8, 14, 20])
def test_a_sampler_goes_on_from_its_position(drawn):
    whole = Sampler(7, seed=1)
    rows = [whole.draw() for _ in range(40)]
    resumed = Sampler(7, seed=1)
    resumed.position = drawn
    assert [resumed.draw() for _ in range(40 - drawn)] == rows[drawn:]
    assert resumed.position == 40


def test_a_position_may_be_set_back_within_a_run():
    sampler = Sampler(7, seed=1)
    rows = [sampler.draw() for _ in range(10)]
    sampler.position = 2
    assert [sampler.draw() for _ in range(8)] == rows[2:]


def drawn(sizes, weights, count, seed=0):
    sampler = Sampler(sizes, seed, weights)
    return [sampler.draw() for _ in range(count)]


def files(indices, sizes):
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return [next(n for n, end in enumerate(ends) if index < end) for index in indices]


@pytest.mark.parametrize(
    ("weights", "order"),
    [
        ([1, 1], [0, 1, 0, 1, 0, 1, 0, 1]),
        ([3, 1], [0, 0, 1, 0, 0, 0, 1, 0]),
        ([1, 3], [1, 0, 1, 1, 1, 0, 1, 1]),
        ([0.5, 0.25, 0.25], [0, 1, 2, 0, 0, 1, 2, 0]),
        ([2, 1, 1], [0, 1, 2, 0, 0, 1, 2, 0]),
    ],
)
def test_files_take_turns_in_proportion(weights, order):
    sizes = [10] * len(weights)
    assert files(drawn(sizes, weights, 8), sizes) == order


@pytest.mark.parametrize(
    ("weights", "whole"),
    [
        ([0.1, 0.2], [1, 2]),
        ([1, 1], [1, 1]),
        ([0.7, 0.3], [7, 3]),
        ([1e-3, 1], [1, 1000]),
        ([6, 4], [3, 2]),
        ([5], [1]),
    ],
)
def test_weights_count_as_they_are_written(weights, whole):
    assert whole_weights(weights) == whole


@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=6), count=st.integers(0, 400))
def test_every_prefix_keeps_to_the_proportions(weights, count):
    sizes = [7] * len(weights)
    counts = Counter(files(drawn(sizes, weights, count), sizes))
    for file, weight in enumerate(weights):
        share = Fraction(weight * count, sum(weights))
        assert abs(counts[file] - share) < max(len(weights) - 1, 1)
        if (count * weight) % sum(weights) == 0 and count % sum(weights) == 0:
            assert counts[file] == share


def test_every_row_of_a_file_comes_once_an_epoch_of_that_file():
    sizes = [3, 8]
    indices = drawn(sizes, [3, 1], 64)  # 48 draws of the first file, 16 of the second
    first = [index for index in indices if index < 3]
    second = [index for index in indices if index >= 3]
    assert [sorted(first[n : n + 3]) for n in range(0, 48, 3)] == [[0, 1, 2]] * 16
    assert [sorted(second[n : n + 8]) for n in (0, 8)] == [list(range(3, 11))] * 2
    assert len({tuple(first[n : n + 3]) for n in range(0, 48, 3)}) > 1


@pytest.mark.parametrize("position", [0, 1, 6, 7, 30, 99, 100])
def test_a_mixture_goes_on_from_its_position(position):
    sizes, weights = [5, 9, 2], [0.2, 0.5, 0.3]
    whole = drawn(sizes, weights, 120)
    resumed = Sampler(sizes, 0, weights)
    resumed.position = position
    assert [resumed.draw() for _ in range(120 - position)] == whole[position:]


def test_a_far_position_is_reached_by_the_period_of_the_weights():
    sampler = Sampler([5, 9], 0, [1, 2])
    sampler.position = 3 * 10**15  # so many draws could not be replayed
    assert files([sampler.draw() for _ in range(3)], [5, 9]) == [1, 0, 1]


def test_one_file_of_a_mixture_is_drawn_as_it_would_be_alone():
    assert drawn([7], [3], 20, seed=5) == drawn(7, None, 20, seed=5)


@pytest.mark.parametrize(("sizes", "weights"), [([7], [1]), ([5, 9, 2], [0.2, 0.5, 0.3])])
@pytest.mark.parametrize("position", [0, 3, 6, 50])
def test_what_is_peeked_at_stays_to_be_drawn(sizes, weights, position):
    whole = drawn(sizes, weights, 120)
    sampler = Sampler(sizes, 0, weights)
    sampler.position = position
    for start in range(position, 100):
        assert sampler.peek(20) == whole[start : start + 20]  # over the ends of epochs, too
        assert sampler.peek(0) == sampler.peek(-20) == []
        assert sampler.position == start
        assert sampler.draw() == whole[start]


def test_a_position_may_be_set_after_a_look():
    sampler = Sampler(7, seed=1)
    rows = sampler.peek(20)
    sampler.position = 5
    assert sampler.peek(3) == rows[5:8]
    assert sampler.draw() == rows[5]
