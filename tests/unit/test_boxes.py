"""A box from outside is checked before it is used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.boxes import valid_box, was_clipped

NAN, INF = float("nan"), float("inf")
SIZE = (100, 50)


@pytest.mark.parametrize(
    ("box", "inside", "clipped"),
    [
        ((0.0, 0.0, 100.0, 50.0), (0.0, 0.0, 100.0, 50.0), False),
        ((0.5, 0.5, 0.75, 0.75), (0.5, 0.5, 0.75, 0.75), False),
        ((-10.0, -10.0, 10.0, 10.0), (0.0, 0.0, 10.0, 10.0), True),
        ((90.0, 40.0, 1e308, 1e308), (90.0, 40.0, 100.0, 50.0), True),
        ((90.0, 40.0, 100.0 + 1e-9, 50.0), (90.0, 40.0, 100.0, 50.0), False),
        ((90.0, 40.0, 100.01, 50.0), (90.0, 40.0, 100.0, 50.0), True),
    ],
)
def test_a_box_is_its_part_inside(box, inside, clipped):
    assert valid_box(box, SIZE) == (inside, "")
    assert was_clipped(box, inside) == clipped


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((NAN, 0.0, 1.0, 1.0), "the box is not finite"),
        ((0.0, 0.0, INF, 1.0), "the box is not finite"),
        ((9.0, 9.0, 1.0, 1.0), "the box is inverted or has no area"),
        ((9.0, 1.0, 1.0, 9.0), "the box is inverted or has no area"),
        ((1.0, 1.0, 1.0, 9.0), "the box is inverted or has no area"),
        ((0.0, 0.0, 1e-200, 1e-200), "the box is inverted or has no area"),
        ((100.0, 0.0, 120.0, 50.0), "the box lies outside the image"),
        ((-9.0, -9.0, 0.0, 0.0), "the box lies outside the image"),
        ((-9.0, -9.0, 1e-200, 1e-200), "the box lies outside the image"),
    ],
)
def test_a_box_that_covers_nothing_is_refused_with_the_reason(box, reason):
    assert valid_box(box, SIZE) == (None, reason)


@given(st.tuples(*[st.floats()] * 4))
def test_what_is_let_through_has_an_area_inside(box):
    inside, reason = valid_box(box, SIZE)
    assert (inside is None) == bool(reason)
    if inside is not None:
        x1, y1, x2, y2 = inside
        assert 0 <= x1 < x2 <= 100
        assert 0 <= y1 < y2 <= 50
        assert (x2 - x1) * (y2 - y1) > 0
