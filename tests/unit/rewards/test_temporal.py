"""Spans score by temporal IoU, tracks by the IoUs of boxes at the same time."""

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.errors import ConfigError
from mmrl.models.space import Relative
from mmrl.resolve import build
from mmrl.rewards.temporal import SpanIoU, TrackIoU, span_iou
from mmrl.types import ScoreKind, Turn

NAN, INF = float("nan"), float("inf")
SPAN = (10.0, 20.0)


@pytest.fixture(scope="session")
def said(judge, video):
    """said(answer, gold span, ..., medium=) is SpanIoU of an answer about a video of a minute."""

    def score(answer, *spans, medium=None, **fields):
        return judge(SpanIoU(**fields), answer, gold={"spans": spans or (SPAN,)}, media=(medium or video(),))

    return score


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("10s to 20s", 1.0),
        ("[10, 20]", 1.0),
        ('{"start": "00:10", "end": "0:00:20.0"}', 1.0),
        ("10 - 15 seconds", 5 / 10),
        ("[15, 25]", 5 / 15),
        ("[0, 60]", 10 / 60),
        ("[20, 30]", 0.0),
        ("[40, 50]", 0.0),
        ("[40, 50], [10, 20]", 1.0),
        ("[10, 20], [40, 50]", 0.0),
    ],
)
def test_a_span_scores_by_its_temporal_iou(answer, value, said):
    score = said(answer)
    assert (score.kind, score.value, score.reason, score.flag) == (ScoreKind.VALUE, pytest.approx(value), "", "")


def test_the_first_span_may_count(said):
    assert said("[10, 20], [40, 50]", which="first").value == 1.0


def test_the_gold_span_that_fits_best_counts(said):
    assert said("[10, 15]", (0.0, 2.0), SPAN, (30.0, 31.0)).value == 0.5


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "no answer"),
        ("I do not know.", "the answer names no span"),
        ("[20, 10]", "the span is inverted or empty"),
        ("[10, 10]", "the span is inverted or empty"),
        ("[60, 70]", "the span lies outside the medium"),
        ("[-5, -1]", "the span lies outside the medium"),
        ("[NaN, 20]", "a span must be two times [start, end]"),
        ("[10, Infinity]", "a span must be two times [start, end]"),
        ("[true, 20]", "a span must be two times [start, end]"),
        ("10 to 20 " * 5000, "the answer names no span"),
        ("[10, 20]" * 1001, "more than 1000 places"),
    ],
)
def test_what_is_no_span_scores_zero_with_the_reason(answer, reason, said):
    score = said(answer)
    assert (score.kind, score.value, score.reason, score.flag) == (ScoreKind.VALUE, 0.0, reason, "")


def test_a_span_that_reaches_out_counts_as_its_part_inside_and_is_flagged(said, video):
    medium = video(span=(5.0, 15.0))
    for answer in ("[5, 99]", "[-3, 15]", "[0, 1e300]"):
        score = said(answer, (5.0, 15.0), medium=medium)
        assert (score.value, score.flag) == (1.0, "clipped")
    assert said("[5, 15]", (5.0, 15.0), medium=medium).flag == ""
    assert said("[5, 15.0001]", (5.0, 15.0), medium=medium).flag == ""  # rounding


def test_a_gold_span_that_reaches_out_can_be_met(said, video):
    assert said("[10, 15]", (10.0, 99.0), medium=video(span=(5.0, 15.0))).value == 1.0


def test_without_a_known_span_the_last_frame_is_shown_as_long_as_the_one_before(said, video):
    medium = video(span=None, times=(1.0, 3.0, 5.0))
    assert said("[1, 7]", (1.0, 7.0), medium=medium).flag == ""
    assert said("[1, 8]", (1.0, 7.0), medium=medium).flag == "clipped"
    assert said("[7, 8]", (1.0, 7.0), medium=medium).reason == "the span lies outside the medium"
    endless = said("[-1, 1e300]", (0.0, 1e300), medium=video(span=None))
    assert (endless.value, endless.flag) == (1.0, "clipped")


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        ((20.0, 10.0), "the span is inverted or empty"),
        ((10.0, 10.0), "the span is inverted or empty"),
        ((NAN, 10.0), "the span is not finite"),
        ((1.0, INF), "the span is not finite"),
        ((70.0, 80.0), "the span lies outside the medium"),
    ],
)
@pytest.mark.parametrize("answer", ["[10, 20]", None])
def test_a_gold_span_that_cannot_be_used_is_an_error_naming_the_row(answer, span, reason, said):
    score = said(answer, SPAN, span)
    assert (score.kind, score.reason) == (
        ScoreKind.ERROR,
        f"rows.jsonl row 3: gold span 1: {reason}; correct the row",
    )


def test_a_row_without_gold_is_not_scored(judge, video):
    for reward in (SpanIoU(), TrackIoU()):
        score = judge(reward, "[10, 20]", gold={}, media=(video(),))
        assert score.kind is ScoreKind.NOT_APPLICABLE


@pytest.mark.parametrize("reward", [SpanIoU(), TrackIoU()])
def test_gold_without_a_medium_is_an_error_naming_the_row(reward, judge):
    gold = {"spans": (SPAN,), "track": ((1.0, (0.0, 0.0, 1.0, 1.0)),)}
    score = judge(reward, "[10, 20]", gold=gold, media=())
    assert score.reason == "rows.jsonl row 3: the row has gold places but no medium; correct the row"


@pytest.mark.parametrize(("which", "value"), [("first", 0.5), ("last", 0.0), ("best", 1.0)])
def test_of_spans_that_calls_looked_at_the_chosen_one_counts(which, value, judge, video, asking):
    media = (video(), video(span=(5.0, 30.0), key="clip", parent="v"), video(key="w"))
    turns = [asking(on="v", span=(10.0, 15.0)), asking(on="clip", span=SPAN), asking(on="w", span=SPAN), asking()]
    reward = SpanIoU(source="call", which=which)
    score = judge(reward, *turns, gold={"spans": (SPAN,)}, media=media)
    assert score.value == value
    assert (score.reason == "the place is on another medium than the gold") == (which == "last")


def test_asking_for_no_span_scores_zero(judge, video, asking):
    turns = (asking(on="v", box=(0.0, 0.0, 9.0, 9.0)), Turn(segment=1, text="", answer="[10, 20]"))
    score = judge(SpanIoU(source="call"), *turns, gold={"spans": (SPAN,)}, media=(video(),))
    assert (score.value, score.reason) == (0.0, "no span was asked for")


ticks = st.integers(0, 60)
ticks_2 = st.tuples(ticks, st.integers(1, 30)).map(lambda span: (span[0], span[0] + span[1]))


@given(ticks_2, ticks_2)
def test_span_iou_is_that_of_counted_ticks(first, second):
    a, b = set(range(*first)), set(range(*second))
    assert span_iou(first, second) == pytest.approx(len(a & b) / len(a | b))
    assert span_iou(first, second) == span_iou(second, first)
    assert span_iou(first, first) == 1.0


@given(st.lists(st.tuples(*[st.floats(-100, 100) | st.sampled_from([NAN, INF, 1e308, 5e-324])] * 2), max_size=4))
def test_any_answer_scores_within_the_range(said, spans):
    score = said(json.dumps(spans))
    assert score.kind is ScoreKind.VALUE
    assert 0.0 <= score.value <= 1.0


# --- TrackIoU

BOX, HALF, FAR = (0.0, 0.0, 20.0, 20.0), (0.0, 0.0, 20.0, 10.0), (60.0, 60.0, 80.0, 80.0)
TRACK = ((1.0, BOX), (2.0, FAR), (3.0, BOX))


def entries(*track):
    return json.dumps([{"time": time, "bbox_2d": box} for time, box in track])


@pytest.fixture(scope="session")
def tracked(judge, video):
    """tracked(answer, track=...) is TrackIoU of an answer about a video of 100 x 100 pixels."""

    def score(answer, track=TRACK, space=None, **fields):
        return judge(TrackIoU(**fields), answer, gold={"track": track}, media=(video(),), space=space)

    return score


@pytest.mark.parametrize(
    ("track", "value"),
    [
        (TRACK, 1.0),
        (TRACK[::-1], 1.0),
        ([(1.4, BOX), (2.5, FAR), (2.6, BOX)], 1.0),  # within half a second
        ([(1.6, BOX), (2.0, FAR), (3.0, BOX)], 2 / 3),  # too late
        ([(1.0, HALF), (2.0, FAR), (3.0, BOX)], 2.5 / 3),
        ([(1.0, FAR), (2.0, BOX), (3.0, FAR)], 0.0),  # the right boxes at the wrong times
        ([(1.0, BOX), (2.0, FAR)], 2 * 2 / 5),  # a time is missing
        ([*TRACK, (9.0, BOX)], 2 * 3 / 7),  # one too many
        ([*TRACK, (1.0, BOX)], 2 * 3 / 7),  # the same twice
        ([(1.0, FAR), (1.0, BOX), (2.0, FAR), (3.0, BOX)], 2 * 3 / 7),  # the better of two guesses, at a price
        ([*TRACK, (4.0, [9, 9, 1, 1])], 2 * 3 / 7),
        ([(1.0, BOX)] * 1000, 2 * 1 / 1003),
        ([(1.0, BOX)] * 1001, 0.0),
        ([], 0.0),
    ],
)
def test_a_track_scores_by_its_boxes_at_the_gold_times(track, value, tracked):
    score = tracked(entries(*track))
    assert (score.kind, score.value) == (ScoreKind.VALUE, pytest.approx(value))


def test_the_tolerance_is_a_field_and_may_be_none_at_all(tracked):
    late = entries((1.2, BOX), (2.0, FAR), (3.0, BOX))
    assert tracked(late, tolerance_s=0.1).value == pytest.approx(2 / 3)
    assert tracked(late, tolerance_s=0.2).value == 1.0
    assert tracked(entries(*TRACK), tolerance_s=0.0).value == 1.0
    with pytest.raises(ConfigError):
        build("mmrl.rewards.temporal:TrackIoU", {"tolerance_s": -1})


def test_a_track_is_read_in_the_models_own_space(judge, video):
    medium = video(original=(200, 50))
    answer = entries((1.0, [100, 200, 500, 1000]))  # of 1000
    gold = {"track": ((1.0, (20.0, 10.0, 100.0, 50.0)),)}
    assert judge(TrackIoU(), answer, gold=gold, media=(medium,), space=Relative()).value == pytest.approx(1.0)
    assert judge(TrackIoU(), answer, gold=gold, media=(medium,)).value == 0.0


def test_boxes_of_a_track_that_reach_out_are_clipped_and_flagged(tracked):
    score = tracked(entries((1.0, [-50, 0, 20, 20])), track=((1.0, BOX),))
    assert (score.value, score.flag) == (1.0, "clipped")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "no answer"),
        ("It moves left.", "the answer names no timed box"),
        ("[0, 0, 20, 20]", '1 of 1 places refused: a timed box must be {"time": seconds, "bbox_2d": [x1, y1, x2, y2]}'),
        ('[{"time": NaN, "bbox_2d": [0, 0, 20, 20]}]', "1 of 1 places refused: a timed box must have a time"),
        (entries((1.0, [20, 20, 0, 0])), "1 of 1 places refused: the box is inverted or has no area"),
        (entries((1.0, [200, 200, 300, 300])), "1 of 1 places refused: the box lies outside the image"),
    ],
)
def test_an_answer_without_a_track_scores_zero_with_the_reason(answer, reason, tracked):
    score = tracked(answer)
    assert (score.kind, score.value, score.reason) == (ScoreKind.VALUE, 0.0, reason)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ((NAN, BOX), "gold track 1: its time is nan"),
        ((-1.0, BOX), "gold track 1: its time is -1.0"),
        ((1.0, BOX[::-1]), "gold box 1: the box is inverted or has no area"),
        ((1.0, (200.0, 200.0, 300.0, 300.0)), "gold box 1: the box lies outside the image"),
    ],
)
@pytest.mark.parametrize("answer", [entries(*TRACK), None])
def test_a_gold_track_that_cannot_be_used_is_an_error_naming_the_row(answer, entry, reason, tracked):
    score = tracked(answer, track=(TRACK[0], entry))
    assert (score.kind, score.reason) == (ScoreKind.ERROR, f"rows.jsonl row 3: {reason}; correct the row")


strips = st.tuples(st.integers(0, 6), st.integers(0, 30), st.integers(1, 30)).map(
    lambda entry: (float(entry[0]), (entry[1], 0, entry[1] + entry[2], 10))
)


@given(named=st.lists(strips, min_size=1, max_size=4), gold=st.lists(strips, min_size=1, max_size=4))
def test_a_track_is_the_best_of_all_matchings(tracked, named, gold):
    def credit(one, other):  # strips of one height overlap as spans do; times are whole, the tolerance is 1
        near = abs(one[0] - other[0]) <= 1
        return span_iou((one[1][0], one[1][2]), (other[1][0], other[1][2])) if near else 0.0

    few, many = sorted([named, gold], key=len)
    best = max(sum(map(credit, few, chosen)) for chosen in itertools.permutations(many, len(few)))
    score = tracked(entries(*named), track=tuple(gold), tolerance_s=1.0)
    assert score.value == pytest.approx(2 * best / (len(named) + len(gold)))
    assert math.isclose(tracked(entries(*gold), track=tuple(named), tolerance_s=1.0).value, score.value)
