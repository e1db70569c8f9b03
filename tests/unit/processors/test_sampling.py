"""Which frames a look shows and at what size."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from qwen_vl_utils.vision_process import smart_resize

from mmrl.processors.image import fit_size
from mmrl.processors.sampling import (
    Sampling,
    clip_span,
    distinct,
    fit_budget,
    frame_at,
    moments,
    plan_look,
)

TWENTY_A_SECOND = [n / 20 for n in range(60)]
SIZE = (560, 280)


def indices(look, times=TWENTY_A_SECOND, duration=3.0, span=None):
    return plan_look(times, duration, SIZE, span, look).indices


def test_fps_counts_from_the_start_of_the_span():
    assert moments((0.0, 3.0), Sampling(fps=2)) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert moments((10.0, 12.0), Sampling(fps=4)) == [10.0, 10.25, 10.5, 10.75, 11.0, 11.25, 11.5, 11.75]
    # The end of the span is the first moment that no longer belongs to it.
    assert len(moments((0.0, 3.0 + 1e-9), Sampling(fps=2))) == 6
    assert moments((0.0, 2.6), Sampling(fps=2))[-1] == 2.5


def test_too_few_and_too_many_are_spread_evenly():
    assert moments((0.0, 1.0), Sampling(fps=2, min_frames=4)) == [0.0, 0.25, 0.5, 0.75]
    assert moments((0.0, 100.0), Sampling(fps=2, max_frames=4)) == [0.0, 25.0, 50.0, 75.0]


def test_known_frames():
    assert indices(Sampling(frames=6)) == (0, 10, 20, 30, 40, 50)
    assert indices(Sampling(fps=2)) == (0, 10, 20, 30, 40, 50)
    assert indices(Sampling(frames=4), span=(1.0, 2.0)) == (20, 25, 30, 35)
    assert indices(Sampling(frames=2), span=(1.02, 1.12)) == (20, 21)  # those that are shown at these times


def test_an_odd_count_repeats_the_last_frame():
    assert indices(Sampling(frames=3)) == (0, 20, 40, 40)
    assert indices(Sampling(), times=[0.0], duration=0.04) == (0, 0)
    assert indices(Sampling(frames=4, temporal=3)) == (0, 15, 30, 45, 45, 45)


def test_no_frame_is_shown_twice():
    assert indices(Sampling(frames=8), times=[0.0, 1.0, 2.0, 2.5], duration=3.0) == (0, 1, 2, 3)
    # A still picture of 10 s in a file of variable frame rate is one frame.
    assert indices(Sampling(fps=1), times=[0.0, 10.0, 11.0], duration=12.0) == (0, 1, 2, 2)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50, unique=True), st.floats(0, 120))
def test_the_frame_at_a_moment_is_the_last_that_has_begun(starts, moment):
    times = sorted(start - min(starts) for start in starts)
    index = frame_at(times, moment)
    assert times[index] <= moment + 6e-4
    assert index == len(times) - 1 or times[index + 1] > moment


def test_times_that_a_container_has_rounded_are_met():
    rounded = [round(n / 30, 3) for n in range(60)]
    assert indices(Sampling(fps=15), times=rounded, duration=2.0) == tuple(range(0, 60, 2))


def test_an_endless_rate_is_bounded():
    assert len(moments((0.0, 1e6), Sampling(fps=1e308, max_frames=10_000))) == 10_000


def test_frames_that_start_late_are_looked_at_from_their_start():
    late = [2.0 + n / 20 for n in range(60)]
    plan = plan_look(late, 5.0, SIZE, None, Sampling(frames=6))
    assert (plan.indices, plan.span) == ((0, 10, 20, 30, 40, 50), (2.0, 5.0))
    assert plan_look(late, 5.0, SIZE, (1.0, 3.0), Sampling(frames=2)).span == (2.0, 3.0)
    with pytest.raises(ValueError, match="is empty or outside; it lasts from 2 s to 5 s"):
        clip_span((0.0, 2.0), 5.0, 2.0)


def test_a_span_is_clipped_to_the_video():
    assert clip_span((1.0, float("inf")), 3.0) == (1.0, 3.0)
    assert clip_span(None, 3.0) == (0.0, 3.0)
    assert clip_span((-1.0, 2.0), 3.0) == (0.0, 2.0)
    assert clip_span((1.0, 9.0), 3.0) == (1.0, 3.0)


@pytest.mark.parametrize(
    "span", [(3.0, 4.0), (-2.0, 0.0), (2.0, 1.0), (1.0, 1.0), (float("nan"), 2.0), (1.0, float("nan"))]
)
def test_a_span_outside_is_refused(span):
    with pytest.raises(ValueError, match="is empty or outside; it lasts 3 s"):
        clip_span(span, 3.0)


def steps(chosen, temporal=2):
    return [chosen[n : n + temporal] for n in range(0, len(chosen), temporal)]


@given(st.integers(1, 400), st.sampled_from([2, 4]), st.data())
def test_every_look_is_part_of_every_denser_one(num_frames, temporal, data):
    times = [n / 25 for n in range(num_frames)]
    densest = temporal * 16
    before: list = []
    for frames in (temporal, temporal * 2, temporal * 4, temporal * 8, densest):
        look = Sampling(frames=frames, densest=densest, temporal=temporal)
        chosen = steps(indices(look, times, num_frames / 25), temporal)
        assert len(chosen) == min(frames, num_frames + -num_frames % temporal) // temporal or num_frames > densest
        assert len(chosen) <= frames // temporal
        assert all(step in chosen for step in before)
        before = chosen
    assert before == steps(indices(Sampling(frames=densest, temporal=temporal), times, num_frames / 25), temporal)


def test_a_nested_look_takes_every_fourth_pair():
    assert indices(Sampling(frames=8, densest=32), times=[n / 32 for n in range(32)], duration=1.0) == (
        *(0, 1, 8, 9, 16, 17, 24, 25),
    )


def test_a_nested_look_at_a_short_clip_shows_as_much_as_there_is():
    times = [n / 10 for n in range(10)]
    shown = {n: indices(Sampling(frames=n, densest=64), times, 1.0) for n in (2, 4, 8, 16, 32, 64)}
    assert shown[2] == (0, 1)
    assert shown[4] == (0, 1, 4, 5)
    assert shown[8] == (0, 1, 2, 3, 4, 5, 6, 7)
    assert shown[16] == shown[32] == shown[64] == tuple(range(10))


def test_nested_looks_have_one_size_of_frame():
    look = Sampling(frames=2, densest=32, max_tokens=16 * 30, min_pixels=28 * 28)
    sizes = {plan_look(TWENTY_A_SECOND, 3.0, SIZE, None, replace(look, frames=n)).seen for n in (2, 4, 8, 16, 32)}
    assert len(sizes) == 1


def test_the_token_budget_takes_pixels_first_then_frames():
    look = Sampling(frames=8, min_pixels=4 * 784, max_pixels=200 * 784, max_tokens=None)
    assert fit_budget(SIZE, 8, look) == ((560, 280), 8)
    assert fit_budget(SIZE, 8, replace(look, max_tokens=800)) == ((560, 280), 8)  # 4 steps of 200 tokens
    assert fit_budget(SIZE, 8, replace(look, max_tokens=200)) == ((280, 140), 8)  # 4 steps of 50
    assert fit_budget(SIZE, 8, replace(look, max_tokens=20)) == ((84, 28), 8)  # 4 steps of 3
    assert fit_budget(SIZE, 8, replace(look, max_tokens=20, min_pixels=8 * 784)) == ((112, 56), 4)  # 2 steps of 8
    with pytest.raises(ValueError, match="one step takes 8 tokens, more than max_tokens = 7; lower min_pixels"):
        fit_budget(SIZE, 8, replace(look, max_tokens=7, min_pixels=8 * 784))


@given(st.integers(28, 2000), st.integers(28, 2000), st.integers(1, 200), st.integers(300, 20_000))
def test_the_token_budget_holds(width, height, frames, max_tokens):
    look = Sampling(frames=frames, max_tokens=max_tokens, min_pixels=4 * 784)
    times = [n / 20 for n in range(200)]
    plan = plan_look(times, 10.0, (width, height), None, look)
    assert len(plan.indices) // 2 * (plan.seen[0] * plan.seen[1] // 784) <= max_tokens
    assert len(plan.indices) % 2 == 0


@settings(max_examples=300)
@given(
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.sampled_from([28, 32]),
    st.integers(4, 256),
    st.integers(256, 16_384),
)
def test_a_frame_has_the_size_that_qwen_gives_it(width, height, factor, least, most):
    """Wherever theirs keeps to its own budget; it lets a narrow picture exceed it."""
    assume(max(width, height) <= 200 * min(width, height))
    budget = (least * factor**2, most * factor**2)
    h, w = smart_resize(height, width, factor, *budget)
    if h * w <= budget[1]:
        assert fit_size((width, height), factor, *budget) == (w, h)


def test_distinct_keeps_order():
    assert distinct([0.0, 1.0, 2.0], [1.5, 0.2, 1.1]) == [0, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fps": 0}, "fps is 0; it must be more than 0"),
        ({"fps": float("inf")}, "fps is inf"),
        ({"frames": 0}, "frames is 0; it must be at least 1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"frames": 10**9}, "frames is 1000000000; it must be at most 10000"),
        ({"densest": 20_000}, "densest is 20000; it must be at most 10000"),
        ({"max_frames": 10_001}, "max_frames is 10001; it must be at most 10000"),
        ({"min_frames": 9, "max_frames": 8}, "min_frames and min_pixels may not be more"),
        ({"frames": 6, "densest": 32}, "densest 32 must be a multiple of frames 6"),
        ({"frames": 1, "densest": 32}, "densest 32 must be a multiple of frames 1, and that of temporal 2"),
    ],
)
def test_settings_that_no_video_could_meet_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)
