"""Boxes and points score by where they lie in original pixels, whatever they come from and however they are written."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.errors import ConfigError
from mmrl.models.space import OriginalPixels, Relative, SeenPixels
from mmrl.protocols import RewardContext
from mmrl.resolve import build
from mmrl.rewards.grounding import BoxIoU, BoxSetF1, PointInBox
from mmrl.types import ScoreKind, Turn

GOLD = (20.0, 20.0, 60.0, 60.0)
NAN, INF = float("nan"), float("inf")
KINDS = ["iou", "giou", "diou", "ciou"]
LEAST = {"iou": 0.0, "giou": -1.0, "diou": -1.0, "ciou": -1.0}


@pytest.fixture
def iou(judge, image, asking):
    """iou(box, ..., gold=...) is the Score of a trajectory that asks for these boxes in turn."""

    def score(*boxes, gold=(GOLD,), **fields):
        turns = [asking(box=box) for box in boxes]
        return judge(BoxIoU(**fields), *turns, gold={"boxes": gold}, media=(image(),))

    return score


# --- BoxIoU of what calls looked at


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
def test_asking_for_no_box_scores_the_least_with_the_reason(kind, iou):
    score = iou(kind=kind)
    assert (score.kind, score.value, score.reason) == (ScoreKind.VALUE, LEAST[kind], "no box was asked for")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((60.0, 60.0, 20.0, 20.0), "the box is inverted or has no area"),  # torchvision's GIoU of it is 1
        ((60.0, 20.0, 20.0, 60.0), "the box is inverted or has no area"),
        ((20.0, 60.0, 60.0, 20.0), "the box is inverted or has no area"),
        ((20.0, 20.0, 20.0, 60.0), "the box is inverted or has no area"),
        ((30.0, 30.0, 30.0, 30.0), "the box is inverted or has no area"),
        ((20.0, 20.0, 20.0 + 1e-200, 60.0), "the box is inverted or has no area"),
        ((0.0, 0.0, 1e-200, 1e-200), "the box is inverted or has no area"),
        ((NAN, 20.0, 60.0, 60.0), "the box is not finite"),
        ((20.0, 20.0, INF, 60.0), "the box is not finite"),
        ((100.0, 0.0, 140.0, 100.0), "the box lies outside the image"),
        ((-50.0, -50.0, 0.0, 0.0), "the box lies outside the image"),
    ],
)
def test_a_box_that_covers_nothing_scores_the_least_with_the_reason(kind, box, reason, iou):
    score = iou(box, kind=kind)
    assert (score.kind, score.value, score.reason, score.flag) == (ScoreKind.VALUE, LEAST[kind], reason, "")


def test_a_box_partly_outside_counts_as_its_part_inside(iou):
    gold = ((60.0, 60.0, 100.0, 100.0),)
    assert iou((60.0, 60.0, 500.0, 500.0), gold=gold).value == 1.0
    assert iou((80.0, 60.0, 500.0, 500.0), gold=gold).value == 0.5
    assert iou((-500.0, -500.0, 20.0, 20.0), gold=((0.0, 0.0, 20.0, 40.0),)).value == 0.5
    assert iou((80.0, 60.0, 500.0, 500.0), gold=gold).flag == "clipped"
    assert iou((80.0, 60.0, 100.0, 100.0), gold=gold).flag == ""
    assert iou((80.0, 60.0, 100.0 + 1e-9, 100.0), gold=gold).flag == ""  # rounding


@pytest.mark.parametrize(("which", "value"), [("first", 0.5), ("last", 0.16), ("best", 1.0)])
def test_the_request_that_counts_is_the_chosen_one(which, value, iou):
    boxes = ((20.0, 20.0, 60.0, 40.0), GOLD, (0.0, 0.0, 100.0, 100.0))
    assert iou(*boxes, which=which).value == pytest.approx(value)


def test_turns_without_a_box_are_passed_over(judge, image, asking):
    turns = (asking(box=GOLD), Turn(segment=1, text="<answer>7</answer>", answer="7"))
    assert judge(BoxIoU(which="last"), *turns, gold={"boxes": (GOLD,)}, media=(image(),)).value == 1.0


def test_the_gold_box_that_fits_best_counts(iou):
    assert iou((20.0, 20.0, 60.0, 40.0), gold=((0.0, 0.0, 10.0, 10.0), GOLD, (70.0, 70.0, 90.0, 90.0))).value == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_box_read_from_a_crop_of_a_crop_is_compared_in_original_pixels(kind, judge, image, asking):
    crop = image(seen=(40, 40), key="crop", parent="a", offset=(10.0, 10.0), scale=(2.0, 2.0))
    crop2 = image(seen=(30, 30), key="crop2", parent="crop", offset=(15.0, 15.0), scale=(1.5, 1.5))
    for media in [(image(), crop, crop2), (image(original=(100, 100), seen=(28, 28)), crop, crop2)]:
        score = judge(BoxIoU(kind=kind), asking(on="crop2", box=GOLD), gold={"boxes": (GOLD,)}, media=media)
        assert score.value == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("reward", [BoxIoU(), PointInBox(source="call"), BoxSetF1(source="call")])
def test_the_right_place_on_the_wrong_picture_scores_zero(reward, judge, image, asking):
    # Gold boxes are in the pixels of image 0.
    media = (image(), image(key="b"), image(key="crop of b", parent="b"))
    for on, value in [("a", 1.0), ("b", 0.0), ("crop of b", 0.0)]:
        score = judge(reward, asking(on=on, box=GOLD), gold={"boxes": (GOLD,)}, media=media)
        assert score.value == value
        assert ("on another medium" in score.reason) == (value == 0)


@pytest.mark.parametrize("parents", [{"a": "a"}, {"a": "crop", "crop": "a"}])
def test_a_first_medium_that_is_cut_from_itself_is_the_first_medium(parents, judge, image, asking):
    media = [image(parent=parents["a"]), image(key="crop", parent="a")]
    box = (10, 10, 50, 50)
    assert judge(BoxIoU(), asking(box=box, on="crop"), gold={"boxes": (box,)}, media=media).value == 1.0
    assert judge(BoxIoU(), asking(box=box), gold={"boxes": (box,)}, media=media).value == 1.0


@pytest.mark.parametrize("parents", [("b", "c"), ("c", "b")])
def test_media_that_are_cut_from_one_another_are_not_the_first(parents, judge, image, asking):
    media = [image(), image(key="b", parent=parents[0]), image(key="c", parent=parents[1])]
    score = judge(BoxIoU(), asking(box=(10, 10, 50, 50), on="b"), gold={"boxes": ((10, 10, 50, 50),)}, media=media)
    assert (score.value, score.reason) == (0.0, "the place is on another medium than the gold")


def test_every_sibling_is_scored_in_order(make_trajectory, make_group, image, asking):
    boxes = (GOLD, (70.0, 70.0, 90.0, 90.0), GOLD)
    group = make_group(*[make_trajectory(asking(box=box), media=(image(),)) for box in boxes], boxes=(GOLD,))
    scores = asyncio.run(BoxIoU().score(group, RewardContext(step=0)))
    assert [score.value for score in scores] == [1.0, 0.0, 1.0]


# --- Answers, in every space

# The image is 200 x 100 and seen at 50 x 50; the gold box is (40, 10, 120, 60).
SPACES = [
    (SeenPixels(), [10, 5, 30, 30]),
    (Relative(), [200, 100, 600, 600]),
    (Relative(1.0), [0.2, 0.1, 0.6, 0.6]),
    (OriginalPixels(), [40, 10, 120, 60]),
]


@pytest.mark.parametrize(("space", "box"), SPACES)
def test_an_answer_is_read_in_the_models_own_space(space, box, answered, image):
    fields = {"boxes": ((40.0, 10.0, 120.0, 60.0),), "space": space, "media": (image((200, 100), seen=(50, 50)),)}
    centre = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
    for reward in (BoxIoU(source="answer"), BoxSetF1(threshold=1.0), PointInBox()):
        score = answered(reward, json.dumps({"bbox_2d": box, "label": "x"}), **fields)
        assert (score.value, score.flag) == (pytest.approx(1.0), "")
    assert answered(PointInBox(), json.dumps(centre), **fields).value == 1.0
    for other, _ in SPACES:
        if other != space:
            assert answered(BoxIoU(source="answer"), json.dumps(box), **fields | {"space": other}).value < 0.5


@pytest.mark.parametrize(("space", "box"), SPACES)
def test_all_of_the_image_reaches_out_in_no_space(space, box, answered, image):
    medium = image((207, 103), seen=(56, 28))
    whole = space.from_seen((0.0, 0.0, 56.0, 28.0), medium.frame)
    gold = (0.0, 0.0, 207.0, 103.0)
    score = answered(BoxIoU(source="answer"), json.dumps(whole), boxes=(gold,), space=space, media=(medium,))
    assert (score.value, score.flag) == (pytest.approx(1.0), "")
    corner = json.dumps(whole[2:])
    assert answered(PointInBox(), corner, boxes=(gold,), space=space, media=(medium,)).value == 1.0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "no answer"),
        ("I see no cat.", "the answer names no box"),
        ("[60, 60, 20, 20]", "the box is inverted or has no area"),
        ("[20, 20, 20, 20]", "the box is inverted or has no area"),
        ("[20, 20, NaN, 60]", "a box must be four numbers [x1, y1, x2, y2], all finite"),
        ("[20, 20, 1e308, 1e308, 3]", "a box must be four numbers [x1, y1, x2, y2]"),
        ("[100, 100, 300, 300]", "the box lies outside the image"),
        ("[20, 20, 60, 60] or [60, 60, 20, 20]", "the box is inverted or has no area"),
        ("[20, 20, 60, 60" * 1001, "a bracket is not closed"),
        ("[20, 20, 60, 60]" * 1001, "more than 1000 places"),
        ("<think></think><answer>" * 2000, "the answer names no box"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_without_a_box_scores_the_least_with_the_reason(kind, answer, reason, answered):
    score = answered(BoxIoU(kind=kind, source="answer"), answer, boxes=(GOLD,))
    assert (score.kind, score.value, score.reason) == (ScoreKind.VALUE, LEAST[kind], reason)


def test_a_box_of_an_answer_that_reaches_out_is_clipped_and_flagged(answered):
    gold = ((60.0, 60.0, 100.0, 100.0),)
    score = answered(BoxIoU(source="answer"), "[80, 60, 1e308, 1e308]", boxes=gold)
    assert (score.value, score.flag) == (0.5, "clipped")


def test_calls_and_answers_are_told_apart(judge, image, asking):
    other = (70.0, 70.0, 90.0, 90.0)
    turns = (asking(box=GOLD), Turn(segment=1, text="", answer=json.dumps(other)))
    for source, gold in [("call", GOLD), ("answer", other)]:
        assert judge(BoxIoU(source=source), *turns, gold={"boxes": (gold,)}, media=(image(),)).value == 1.0
        assert judge(PointInBox(source=source), *turns, gold={"boxes": (gold,)}, media=(image(),)).value == 1.0
        assert judge(BoxSetF1(source=source), *turns, gold={"boxes": (gold,)}, media=(image(),)).value == 1.0


@pytest.mark.parametrize("use", ["grounding:BoxIoU", "grounding:PointInBox", "temporal:SpanIoU"])
def test_the_best_of_an_answer_is_refused_since_it_pays_for_guessing(use):
    message = "rewards.0: which: 'best' rewards an answer for guessing many places; use 'first' or 'last'"
    with pytest.raises(ConfigError) as error:
        build(f"mmrl.rewards.{use}", {"source": "answer", "which": "best"}, "rewards.0")
    assert str(error.value) == message
    build(f"mmrl.rewards.{use}", {"source": "call", "which": "best"})


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("BoxSetF1", {"threshold": 0}),
        ("BoxSetF1", {"threshold": 1.1}),
        ("BoxSetF1", {"threshold": NAN}),
        ("PointInBox", {"radius_px": -1}),
        ("PointInBox", {"radius_px": NAN}),
        ("BoxIoU", {"source": "thought"}),
    ],
)
def test_an_impossible_field_is_refused(name, fields):
    with pytest.raises(ConfigError):
        build(f"mmrl.rewards.grounding:{name}", fields)


# --- Gold that cannot be used


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((60.0, 60.0, 20.0, 20.0), "the box is inverted or has no area"),
        ((NAN, 20.0, 60.0, 60.0), "the box is not finite"),
        ((200.0, 200.0, 300.0, 300.0), "the box lies outside the image"),
        ((20.0, 20.0, 20.0 + 1e-200, 20.0 + 1e-200), "the box is inverted or has no area"),
    ],
)
@pytest.mark.parametrize("reward", [BoxIoU(), BoxIoU(source="answer", kind="giou"), BoxSetF1(), PointInBox()])
@pytest.mark.parametrize("answer", ["[20, 20, 60, 60]", None])
def test_a_gold_box_that_cannot_be_used_is_an_error_naming_the_row(reward, box, reason, answer, answered):
    score = answered(reward, answer, boxes=(GOLD, box))
    assert (score.kind, score.reason) == (
        ScoreKind.ERROR,
        f"rows.jsonl row 3: gold box 1: {reason}; correct the row",
    )


def test_a_gold_point_outside_is_an_error_naming_the_row(answered):
    for point in [(101.0, 5.0), (-1.0, 5.0), (NAN, 5.0)]:
        score = answered(PointInBox(), "[5, 5]", points=((5.0, 5.0), point))
        assert score.kind is ScoreKind.ERROR
        assert score.reason == "rows.jsonl row 3: gold point 1: the point lies outside the image; correct the row"


@pytest.mark.parametrize("reward", [BoxIoU(), BoxSetF1(), PointInBox()])
def test_gold_boxes_without_a_medium_are_an_error_naming_the_row(reward, judge):
    score = judge(reward, "[5, 5]", gold={"boxes": (GOLD,)}, media=())
    reason = "rows.jsonl row 3: the row has gold places but no medium; correct the row"
    assert (score.kind, score.reason) == (ScoreKind.ERROR, reason)


# --- PointInBox


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("[40, 40]", 1.0),
        ("(40, 40)", 1.0),
        ('{"point_2d": [40, 40]}', 1.0),
        ("[20, 60]", 1.0),  # its corner
        ("[19, 40]", 0.0),
        ("[40, 61]", 0.0),
        ("[90, 90], [40, 40]", 1.0),
        ("[40, 40], [90, 90]", 0.0),
        ("[30, 30, 50, 50]", 1.0),
        ("[0, 0, 100, 100]", 1.0),  # its centre (50, 50) lies in the gold box
        ("[0, 0, 30, 30]", 0.0),
        ("[50, 50, 30, 30]", 0.0),
        ("[1e9, 40]", 0.0),
        ("[-1e-9, 40]", 0.0),
        ("[40]", 0.0),
        ("none", 0.0),
        (None, 0.0),
    ],
)
def test_a_point_scores_by_whether_it_lies_in_the_gold_box(answer, value, answered):
    score = answered(PointInBox(), answer, boxes=(GOLD,))
    assert (score.kind, score.value) == (ScoreKind.VALUE, value)


def test_any_gold_box_may_hold_the_point(answered):
    assert answered(PointInBox(), "[80, 80]", boxes=(GOLD, (70.0, 70.0, 90.0, 90.0))).value == 1.0


@pytest.mark.parametrize(("answer", "value"), [("[43, 44]", 1.0), ("[43, 44.1]", 0.0), ("[80, 80]", 1.0)])
def test_without_gold_boxes_a_point_within_the_radius_of_a_gold_point_counts(answer, value, answered):
    reward = PointInBox(radius_px=5.0)
    assert answered(reward, answer, points=((40.0, 40.0), (80.0, 80.0))).value == value


def test_a_radius_is_in_original_pixels(answered, image):
    fields = {"points": ((100.0, 50.0),), "media": (image((200, 100), seen=(50, 50)),)}
    assert answered(PointInBox(radius_px=4.0), "[26, 25]", **fields).value == 1.0  # 4 pixels of the original
    assert answered(PointInBox(radius_px=3.9), "[26, 25]", **fields).value == 0.0


def test_the_centre_of_what_a_call_looked_at_is_the_point(judge, image, asking):
    gold = {"boxes": (GOLD,)}
    for which, value in [("first", 0.0), ("last", 0.0), ("best", 1.0)]:
        turns = [
            asking(box=(0.0, 0.0, 10.0, 10.0)),
            asking(box=(35.0, 35.0, 45.0, 45.0)),
            asking(box=(0.0, 0.0, 9.0, 9.0)),
        ]
        assert judge(PointInBox(source="call", which=which), *turns, gold=gold, media=(image(),)).value == value
    assert judge(PointInBox(source="call"), asking(), gold=gold, media=(image(),)).reason == "no point was asked for"


def test_a_row_without_gold_places_is_not_scored(answered):
    assert answered(PointInBox(), "[40, 40]").kind is ScoreKind.NOT_APPLICABLE
    assert answered(BoxSetF1(), "[40, 40, 50, 50]").kind is ScoreKind.NOT_APPLICABLE
    assert answered(BoxIoU(source="answer"), "[40, 40, 50, 50]").kind is ScoreKind.NOT_APPLICABLE


coordinates = st.floats(-300, 300) | st.sampled_from([NAN, INF, 1e308, 5e-324])


@given(boxes=st.lists(st.tuples(*[coordinates] * 4), max_size=4), kind=st.sampled_from(KINDS))
def test_any_answer_scores_within_the_range(answered, boxes, kind):
    score = answered(BoxIoU(kind=kind, source="answer"), json.dumps(boxes), boxes=(GOLD,))
    assert score.kind is ScoreKind.VALUE
    assert LEAST[kind] <= score.value <= 1.0
    assert answered(PointInBox(), json.dumps(boxes), boxes=(GOLD,)).value in (0.0, 1.0)


whole = st.integers(0, 99)
side = st.integers(1, 60)


@given(x=whole, y=whole, width=side, height=side)
def test_iou_is_that_of_counted_pixels(answered, x, y, width, height):
    inside = {(i, j) for i in range(x, min(x + width, 100)) for j in range(y, min(y + height, 100))}
    gold = {(i, j) for i in range(20, 60) for j in range(20, 60)}
    score = answered(BoxIoU(source="answer"), f"[{x}, {y}, {x + width}, {y + height}]", boxes=(GOLD,))
    assert score.value == pytest.approx(len(inside & gold) / len(inside | gold))
    assert (score.flag == "clipped") == (x + width > 100 or y + height > 100)


corner = st.integers(0, 90)
length = st.integers(1, 10)


@given(a=st.tuples(corner, corner, length, length), b=st.tuples(corner, corner, length, length))
def test_giou_is_iou_less_the_empty_share_of_the_hull(answered, a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    shared = max(min(ax + aw, bx + bw) - max(ax, bx), 0) * max(min(ay + ah, by + bh) - max(ay, by), 0)
    union = aw * ah + bw * bh - shared
    hull = (max(ax + aw, bx + bw) - min(ax, bx)) * (max(ay + ah, by + bh) - min(ay, by))
    named, gold = ((x, y, x + w, y + h) for x, y, w, h in (a, b))
    score = answered(BoxIoU(kind="giou", source="answer"), json.dumps(named), boxes=(gold,))
    assert score.value == pytest.approx(shared / union - (hull - union) / hull)
