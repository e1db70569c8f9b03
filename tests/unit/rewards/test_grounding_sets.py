"""A set of boxes scores by F1 over a one-to-one matching; naming nothing is right where there is nothing."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.rewards.grounding import BoxSetF1, overlaps, set_f1
from mmrl.types import ScoreKind

GOLD = (20.0, 20.0, 60.0, 60.0)
LEFT, RIGHT = (0.0, 0.0, 20.0, 20.0), (60.0, 60.0, 90.0, 90.0)
HALF_LEFT = (0.0, 0.0, 20.0, 10.0)  # IoU 1/2 with LEFT
FIFTH_LEFT = (0.0, 0.0, 20.0, 4.0)  # IoU 1/5


@pytest.mark.parametrize(
    ("boxes", "hard", "soft"),
    [
        ([LEFT, RIGHT], 1.0, 1.0),
        ([RIGHT, LEFT], 1.0, 1.0),
        ([LEFT], 2 / 3, 2 / 3),
        ([LEFT, LEFT], 2 / 4, 2 / 4),  # a double earns nothing
        ([LEFT, RIGHT, RIGHT], 4 / 5, 4 / 5),
        ([LEFT, RIGHT, GOLD], 4 / 5, 4 / 5),  # nor does an extra box
        ([HALF_LEFT, RIGHT], 1.0, 1.5 / 2),
        ([FIFTH_LEFT, RIGHT], 1 / 2, 1.2 / 2),
        ([HALF_LEFT, LEFT, RIGHT], 4 / 5, 4 / 5),
        ([LEFT, [90, 90, 60, 60]], 2 / 4, 2 / 4),  # inverted
        ([LEFT, [200, 200, 300, 300]], 2 / 4, 2 / 4),
        ([LEFT, [1, 2]], 2 / 4, 2 / 4),
        ([[0, 0, 0, 0]], 0.0, 0.0),
        ([LEFT, RIGHT] * 500, 4 / 1002, 4 / 1002),
        ([LEFT, RIGHT] * 501, 0.0, 0.0),
        ([], 0.0, 0.0),
    ],
)
def test_a_set_of_boxes_scores_by_f1(boxes, hard, soft, answered):
    for threshold, value in [(0.5, hard), (None, soft)]:
        score = answered(BoxSetF1(threshold=threshold), json.dumps(boxes), boxes=(LEFT, RIGHT))
        assert (score.kind, score.value) == (ScoreKind.VALUE, pytest.approx(value))


def test_the_reason_counts_refused_places_and_the_flag_clipped_ones(answered):
    score = answered(BoxSetF1(), "[1, 2], [60, 60, 900, 900], [5, 5, 1, 1]", boxes=((60.0, 60.0, 100.0, 100.0),))
    assert score.value == 2 / 4
    assert score.reason == "2 of 3 places refused: a box must be four numbers [x1, y1, x2, y2]"
    assert score.flag == "clipped"


def test_a_matching_gives_up_a_good_pair_where_that_earns_more(answered):
    # WIDE fits both gold boxes, NARROW only the first; greedy matching of the best pair would leave one out.
    gold = ((0.0, 0.0, 40.0, 10.0), (0.0, 0.0, 40.0, 14.0))
    wide, narrow = [0, 0, 40, 10], [0, 0, 40, 6]
    assert answered(BoxSetF1(threshold=0.6), json.dumps([wide, narrow]), boxes=gold).value == 1.0


ABSENT = {"no_boxes": True}


@pytest.mark.parametrize(
    ("answer", "value", "reason"),
    [
        ("There is no such thing.", 1.0, ""),
        ("```json\n[]\n```", 1.0, ""),
        ("", 1.0, ""),
        ("[20, 20, 60, 60]", 0.0, "there is no box to name"),
        ("[60, 60, 20, 20]", 0.0, "there is no box to name"),
        ("[oh]", 0.0, "there is no box to name"),
        (None, 0.0, "no answer"),
    ],
)
def test_where_there_is_no_gold_box_naming_none_is_right(answer, value, reason, answered):
    score = answered(BoxSetF1(), answer, metadata=ABSENT)
    assert (score.kind, score.value, score.reason) == (ScoreKind.VALUE, value, reason)


def test_naming_none_is_wrong_where_there_is_a_gold_box(answered):
    score = answered(BoxSetF1(), "There is no such thing.", boxes=(GOLD,))
    assert (score.value, score.reason) == (0.0, "the answer names no box")


def test_a_row_that_has_boxes_and_says_it_has_none_is_an_error(answered):
    score = answered(BoxSetF1(), "[]", boxes=(GOLD,), metadata=ABSENT)
    assert (score.kind, score.reason) == (
        ScoreKind.ERROR,
        "rows.jsonl row 3: metadata say no_boxes, but there are gold boxes; correct the row",
    )


@pytest.mark.parametrize("said", [False, None, 1, "true"])
def test_only_a_plain_true_says_that_there_is_no_box(said, answered):
    assert answered(BoxSetF1(), "[]", metadata={"no_boxes": said}).kind is ScoreKind.NOT_APPLICABLE


# --- Against independent references

whole = st.integers(0, 12)
side = st.integers(1, 8)
boxes_12 = st.tuples(whole, whole, side, side).map(lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3]))
box_lists = st.lists(boxes_12, min_size=1, max_size=4)


def pixels(box):
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


def counted_iou(a, b):
    """By counting pixels."""
    return len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b))


def tried_f1(credit):
    """The best of all one-to-one matchings, each tried."""
    rows, columns = len(credit), len(credit[0])
    if rows > columns:
        return tried_f1(list(zip(*credit, strict=True)))
    totals = (
        sum(credit[row][column] for row, column in enumerate(chosen))
        for chosen in itertools.permutations(range(columns), rows)
    )
    return 2 * max(totals) / (rows + columns)


@given(box_lists, box_lists)
def test_overlaps_are_those_of_counted_pixels(first, second):
    found = overlaps(first, second)
    for (i, a), (j, b) in itertools.product(enumerate(first), enumerate(second)):
        assert found[i, j] == pytest.approx(counted_iou(a, b), abs=1e-12)


@given(named=box_lists, gold=box_lists, threshold=st.sampled_from([None, 0.1, 0.3, 0.5, 0.75, 1.0]))
def test_f1_is_the_best_of_all_matchings(answered, named, gold, threshold):
    credit = [[counted_iou(a, b) for b in gold] for a in named]
    if threshold is not None:
        credit = [[float(value >= threshold) for value in row] for row in credit]
    value = answered(BoxSetF1(threshold=threshold), json.dumps(named), boxes=gold).value
    assert value == pytest.approx(tried_f1(credit))
    assert 0.0 <= value <= 1.0


@given(named=box_lists, gold=box_lists, threshold=st.sampled_from([None, 0.5]), seed=st.randoms())
def test_f1_is_symmetric_and_blind_to_order(answered, named, gold, threshold, seed):

    def f1(some, others):
        return answered(BoxSetF1(threshold=threshold), json.dumps(some), boxes=others).value

    value = f1(named, gold)
    assert f1(gold, named) == pytest.approx(value)
    seed.shuffle(named)
    seed.shuffle(gold)
    assert f1(named, gold) == pytest.approx(value)


@given(gold=st.lists(boxes_12, min_size=1, max_size=4, unique=True), extra=boxes_12)
def test_naming_more_than_the_gold_never_pays(answered, gold, extra):

    def f1(some, others):
        return answered(BoxSetF1(threshold=None), json.dumps(some), boxes=others).value

    assert f1(gold, gold) == 1.0
    assert f1([*gold, extra], gold) == pytest.approx(2 * len(gold) / (2 * len(gold) + 1))


def test_f1_of_nothing_that_is_a_box_is_zero():
    assert set_f1(overlaps([], [GOLD]), num_named=3, num_gold=1) == 0.0
