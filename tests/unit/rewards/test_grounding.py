"""A requested box scores by its overlap with the gold box, both in original pixels."""

import asyncio

import pytest

from mmrl.protocols import RewardContext
from mmrl.rewards.grounding import BoxIoU
from mmrl.types import Region, ScoreKind, Turn

GOLD = (20.0, 20.0, 60.0, 60.0)


@pytest.fixture
def picture_100(shown, noise):
    """A 100 x 100 image of key "a"."""
    return shown(noise(100, 100))


def asking(box, on="a"):
    regions = () if box is None else (Region(on=on, box=box),)
    return Turn(segment=0, text="", regions=regions)


@pytest.fixture
def iou(score_one, picture_100):
    """iou(box, ..., gold=...) is the Score of a trajectory that asks for these boxes in turn."""

    def score(*boxes, gold=(GOLD,), media=(), **fields):
        return score_one(BoxIoU(**fields), *[asking(box) for box in boxes], boxes=gold, media=(picture_100, *media))

    return score


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_the_gold_box_scores_one_and_another_one_less(kind, iou):
    assert iou(GOLD, kind=kind).value == pytest.approx(1.0, abs=1e-6)
    assert iou((0.0, 0.0, 30.0, 30.0), kind=kind).value < 0.2


def test_a_gold_box_that_reaches_out_of_the_image_can_be_met(iou):
    outside = (60.0, 60.0, 140.0, 140.0)  # data that is kept: a part of it is inside
    assert iou(outside, gold=(outside,)).value == 1.0
    assert iou((60.0, 60.0, 100.0, 100.0), gold=(outside,)).value == 1.0


@pytest.mark.parametrize(
    ("box", "value"),
    [
        ((20.0, 20.0, 60.0, 40.0), 800 / 1600),  # its half
        ((40.0, 20.0, 80.0, 60.0), 800 / 2400),  # moved by a half
        ((40.0, 40.0, 80.0, 80.0), 400 / 2800),  # moved by a half along both axes
        ((0.0, 0.0, 100.0, 100.0), 1600 / 10000),  # all of the image
        ((20.5, 20.0, 60.5, 60.0), 1580 / 1620),  # half a pixel off
        ((60.0, 20.0, 100.0, 60.0), 0.0),  # beside it
        ((70.0, 70.0, 90.0, 90.0), 0.0),
    ],
)
def test_the_overlap_is_intersection_over_union(box, value, iou):
    assert iou(box).value == pytest.approx(value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        # Gold (20, 20, 60, 60), asked (40, 20, 80, 60): IoU 1/3, enclosing box 60 x 40, centres 20 apart.
        ("giou", 1 / 3),
        ("diou", 1 / 3 - 400 / 5200),
        ("ciou", 1 / 3 - 400 / 5200),
    ],
)
def test_the_other_overlaps_are_those_of_their_definitions(kind, value, iou):
    assert iou((40.0, 20.0, 80.0, 60.0), kind=kind).value == pytest.approx(value)


def test_giou_of_boxes_apart_falls_with_their_distance(iou):
    # Union 1600 + 100, enclosing box (20, 20, 90, 60) and (20, 20, 100, 60).
    assert iou((80.0, 20.0, 90.0, 30.0), kind="giou").value == pytest.approx(0 - (2800 - 1700) / 2800)
    assert iou((90.0, 20.0, 100.0, 30.0), kind="giou").value == pytest.approx(0 - (3200 - 1700) / 3200)


def test_a_row_without_a_gold_box_is_not_scored(iou):
    score = iou(GOLD, gold=())
    assert (score.kind, score.reason) == (ScoreKind.NOT_APPLICABLE, "the row has no gold box")


def test_asking_for_no_box_scores_zero_with_the_reason(iou, score_one):
    assert (iou().kind, iou().value, iou().reason) == (ScoreKind.VALUE, 0.0, "no box was asked for")
    assert score_one(BoxIoU(), "7", boxes=(GOLD,)).value == 0.0


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((60.0, 20.0, 20.0, 60.0), "the box is inverted or has no area"),
        ((20.0, 60.0, 60.0, 20.0), "the box is inverted or has no area"),
        ((20.0, 20.0, 20.0, 60.0), "the box is inverted or has no area"),
        ((30.0, 30.0, 30.0, 30.0), "the box is inverted or has no area"),
        ((NAN, 20.0, 60.0, 60.0), "the box is not finite"),
        ((20.0, 20.0, INF, 60.0), "the box is not finite"),
        ((100.0, 0.0, 140.0, 100.0), "the box lies outside the image"),
        ((-50.0, -50.0, 0.0, 0.0), "the box lies outside the image"),
    ],
)
def test_a_box_that_covers_nothing_scores_zero_with_the_reason(box, reason, iou):
    score = iou(box)
    assert (score.kind, score.value, score.reason) == (ScoreKind.VALUE, 0.0, reason)


def test_a_box_partly_outside_counts_as_its_part_inside(iou):
    gold = ((60.0, 60.0, 100.0, 100.0),)
    assert iou((60.0, 60.0, 500.0, 500.0), gold=gold).value == 1.0
    assert iou((80.0, 60.0, 500.0, 500.0), gold=gold).value == 0.5
    assert iou((-500.0, -500.0, 20.0, 20.0), gold=((0.0, 0.0, 20.0, 40.0),)).value == 0.5


@pytest.mark.parametrize(("which", "value"), [("first", 0.5), ("last", 0.16), ("best", 1.0)])
def test_the_request_that_counts_is_the_chosen_one(which, value, iou):
    boxes = ((20.0, 20.0, 60.0, 40.0), GOLD, (0.0, 0.0, 100.0, 100.0))
    assert iou(*boxes, which=which).value == pytest.approx(value)


def test_turns_without_a_box_are_passed_over(score_one, picture_100):
    turns = (asking(GOLD), Turn(segment=1, text="<answer>7</answer>", answer="7"))
    assert score_one(BoxIoU(which="last"), *turns, boxes=(GOLD,), media=(picture_100,)).value == 1.0


def test_the_gold_box_that_fits_best_counts(iou):
    assert iou((20.0, 20.0, 60.0, 40.0), gold=((0.0, 0.0, 10.0, 10.0), GOLD, (70.0, 70.0, 90.0, 90.0))).value == 0.5


def test_a_box_read_from_a_crop_is_compared_in_original_pixels(score_one, picture_100, shown, noise):
    crop = shown(noise(30, 30), key="crop", parent="a")
    assert score_one(BoxIoU(), asking(GOLD, on="a"), boxes=(GOLD,), media=(picture_100, crop)).value == 1.0


def test_the_right_place_on_the_wrong_picture_scores_zero(score_one, picture_100, shown, noise):
    # Gold boxes are in the pixels of image 0.
    other = shown(noise(100, 100, seed=1), key="b")
    assert score_one(BoxIoU(), asking(GOLD, on="b"), boxes=(GOLD,), media=(picture_100, other)).value == 0.0


def test_every_sibling_is_scored_in_order(make_trajectory, make_group, picture_100):
    boxes = (GOLD, (70.0, 70.0, 90.0, 90.0), GOLD)
    group = make_group(*[make_trajectory(asking(box), media=(picture_100,)) for box in boxes], boxes=(GOLD,))
    scores = asyncio.run(BoxIoU().score(group, RewardContext(step=0)))
    assert [score.value for score in scores] == [1.0, 0.0, 1.0]
