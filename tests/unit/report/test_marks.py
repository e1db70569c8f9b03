"""Which frame a box is drawn on."""

from mmrl.report.lines import complete
from mmrl.report.marks import marks

BOX, OTHER = [0, 0, 40, 20], [200, 100, 240, 120]


def line(*regions, **gold):
    """A video `v` of 100 x 50, shown as it is."""
    medium = {"seen": [100, 50], "original": [400, 200], "offset": [0, 0], "scale": [4, 4], "parent": None}
    return complete(
        {
            "media": {"v": medium},
            "segments": [{"media": ["v"]}],
            "turns": [{"regions": [{"on": "v", **region} for region in regions]}],
            "gold": gold,
        }
    )


def places(line, times):
    """Per frame, (kind, left) of its marks."""
    return [[(mark.kind, mark.left) for mark in found] for found in marks(line, "v", times)]


def test_a_box_is_drawn_at_its_moments_else_within_its_span_else_on_every_frame():
    asked = ("asked", 0.0)
    assert places(line({"box": BOX, "times": [4, 9]}), [0, 5, 10]) == [[], [asked], [asked]]
    assert places(line({"box": BOX, "span": [4, 20]}), [0, 5, 10]) == [[], [asked], [asked]]
    assert places(line({"box": BOX}), [0, 5, 10]) == [[asked]] * 3
    assert places(line({"span": [4, 20]}), [0, 5, 10]) == [[]] * 3


def test_gold_boxes_and_points_are_drawn_within_the_gold_spans():
    gold = {"boxes": [OTHER], "points": [[100, 100]], "spans": [[0, 1], [9, 12]]}
    both = [("gold", 0.5), ("gold point", 0.25)]
    assert places(line(**gold), [0, 5, 10]) == [both, [], both]
    assert places(line(**{**gold, "spans": []}), [0, 5, 10]) == [both] * 3
    assert places(line(**gold), [5]) == [[]]


def test_each_frame_has_the_nearest_box_of_a_track():
    track = [[4.0, BOX], [5.2, OTHER], [6.0, BOX], [30.0, BOX]]
    assert places(line(track=track), [0, 5, 10]) == [[], [("gold", 0.5)], []]


def test_a_still_has_a_box_only_from_a_moment_close_to_it():
    track = [[4.0, BOX], [5.0, OTHER]]
    assert places(line(track=track), [4.8]) == [[("gold", 0.5)]]
    assert places(line(track=track), [8.0]) == [[]]
    assert places(line(track=track), []) == [[]]


def test_only_the_part_on_the_picture_is_drawn():
    assert places(line({"box": [360, 0, 800, 20]}), []) == [[("asked", 0.9)]]
    (found,) = marks(line({"box": [360, 0, 800, 20]}), "v", [])
    assert abs(found[0].width - 0.1) < 1e-9
    assert places(line({"box": [500, 0, 800, 20]}, points=[[500, 10]]), []) == [[]]
