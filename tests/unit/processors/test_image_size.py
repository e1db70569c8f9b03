"""The size at which an image is shown, and where the shown pixels lie in the original."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.processors.image import fit_size, view

WHITE = np.full((56, 56, 3), 255, dtype=np.uint8)
SIDES = st.integers(min_value=1, max_value=20_000)


@settings(max_examples=300, deadline=None)
@given(SIDES, SIDES, st.sampled_from([14, 28, 32]))
def test_the_seen_size_is_of_whole_patches_within_the_budget(width, height, factor):
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(ValueError, match=f"{width} x {height} is too narrow"):
            fit_size((width, height), factor, 56 * 56, 1280 * 28 * 28)
        return
    w, h = fit_size((width, height), factor, 56 * 56, 1280 * 28 * 28)
    assert w >= factor
    assert h >= factor
    assert w % factor == h % factor == 0
    assert 56 * 56 <= w * h <= 1280 * 28 * 28


@pytest.mark.parametrize("size", [(1000, 50), (50, 1000), (4000, 20)])
def test_an_elongated_image_stays_within_a_small_budget(size):
    w, h = fit_size(size, 28, 28 * 28, 12544)
    assert w * h <= 12544


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((112, 56), (112, 56)),  # as it is
        ((120, 60), (112, 56)),  # rounded to the nearest patch
        ((130, 60), (140, 56)),
        ((10, 10), (56, 56)),  # grown to the least
        ((4000, 3000), (1148, 840)),  # shrunk to the most, rounded down
    ],
)
def test_the_seen_size_is_the_nearest_in_budget(size, seen):
    assert fit_size(size, 28, 56 * 56, 1280 * 28 * 28) == seen


def test_the_aspect_limit_is_inclusive():
    assert fit_size((2000, 10), 28, 28 * 28, 10**6) == (1988, 28)
    with pytest.raises(ValueError, match="2001 x 10 is too narrow: one side is over 200 times the other"):
        fit_size((2001, 10), 28, 28 * 28, 10**6)


def test_keys_differ_where_one_pixel_or_the_shape_differs():
    other = WHITE.copy()
    other[55, 55, 2] = 254
    keys = {
        view(WHITE, None, (56, 56), label="").key,
        view(other, None, (56, 56), label="").key,
        view(WHITE, None, (28, 112), label="").key,
        view(WHITE, None, (112, 28), label="").key,
    }
    assert len(keys) == 4


def test_two_places_that_look_alike_have_keys_of_their_own():
    # Trajectory.media is by key: under one key, the later place would take the frame of the earlier one.
    left = view(WHITE, (0, 0, 28, 28), (28, 28), label="")
    right = view(WHITE, (28, 0, 56, 28), (28, 28), label="")
    assert left.frame != right.frame
    assert left.key != right.key


def test_a_crop_of_a_crop_maps_a_box_to_the_original_exactly(noise):
    original = noise(512, 256)
    crop = view(original, (128, 64, 384, 192), (128, 64), label="")
    assert crop.frame.to_original((32.0, 16.0, 96.0, 48.0)) == (192.0, 96.0, 320.0, 160.0)
    nested = view(original, (192, 96, 320, 160), (256, 128), label="")
    assert nested.frame.to_original((0.0, 0.0, 256.0, 128.0)) == (192.0, 96.0, 320.0, 160.0)
    assert nested.frame.to_original((64.0, 32.0, 66.0, 34.0)) == (224.0, 112.0, 225.0, 113.0)
    assert nested.frame.to_seen((224.0, 112.0, 225.0, 113.0)) == (64.0, 32.0, 66.0, 34.0)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_frame_maps_there_and_back(data):
    original = np.zeros((300, 400, 3), dtype=np.uint8)
    x1, y1 = data.draw(st.integers(0, 390)), data.draw(st.integers(0, 290))
    x2, y2 = data.draw(st.integers(x1 + 1, 400)), data.draw(st.integers(y1 + 1, 300))
    seen = (28 * data.draw(st.integers(1, 3)), 28 * data.draw(st.integers(1, 3)))
    frame = view(original, (x1, y1, x2, y2), seen, label="").frame
    assert frame.to_original((0.0, 0.0, float(seen[0]), float(seen[1]))) == pytest.approx((x1, y1, x2, y2))
    box = (x1 + 0.25, y1 + 0.25, x1 + 0.75, y1 + 0.75)
    assert all(
        math.isclose(a, b, abs_tol=1e-9) for a, b in zip(frame.to_original(frame.to_seen(box)), box, strict=True)
    )
