"""Places are read in the forms of the field; whatever stands in their stead is refused, and nothing raises."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.rewards.reading import (
    MAX_PLACES,
    Refused,
    read_boxes,
    read_points,
    read_spans,
    read_time,
    read_track,
)

READERS = [read_boxes, read_points, read_spans, read_track]
A, B = (1.0, 2.0, 30.0, 40.5), (5.0, 6.0, 7.0, 8.0)


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("[1, 2, 30, 40.5]", [A]),
        ("[1,2,3e1,4.05E+1]", [A]),
        ("[[1, 2, 30, 40.5], [5, 6, 7, 8]]", [A, B]),
        ("[1, 2, 30, 40.5], [5, 6, 7, 8]", [A, B]),
        ('{"bbox_2d": [1, 2, 30, 40.5], "label": "cat"}', [A]),
        ('{"label": "cat", "bbox": [1, 2, 30, 40.5]}', [A]),
        ('[{"bbox_2d": [1, 2, 30, 40.5], "label": "cat"}, {"bbox_2d": [5, 6, 7, 8]}]', [A, B]),
        ('```json\n[\n\t{"bbox_2d": [1, 2, 30, 40.5], "label": "cat"}\n]\n```', [A]),
        ('{"label": "not [9, 9, 9, 9] nor \\"[9,9,9,9]\\"", "bbox_2d": [1, 2, 30, 40.5]}', [A]),
        ('{"label": "the (left) } cat", "bbox_2d": [1, 2, 30, 40.5]}', [A]),
        ("(1,2),(30,40.5)", [A]),
        ("(1, 2) ,(30, 40.5) and (5,6),(7,8)", [A, B]),
        ("<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(30,40.5)<|box_end|>", [A]),
        ("<|box_start|>(1,2),(30,40.5)<|box_end|><|box_start|>(5,6),(7,8)<|box_end|>", [A, B]),
        ("[(1, 2), (30, 40.5)]", [A]),
        ("[[1, 2], [30, 40.5]]", [A]),
        ("(1, 2, 30, 40.5)", [A]),
        ("It's 5\" wide, at [1, 2, 30, 40.5].", [A]),
        ("A smile :( and a box [1, 2, 30, 40.5] :)", [A]),
        ("[-1, +2, 3, 4]", [Refused("not JSON")]),
        ("[-1, 2, 3, 4]", [(-1.0, 2.0, 3.0, 4.0)]),
        ("(-1, +2), (3, .5)", [(-1.0, 2.0, 3.0, 0.5)]),
        ("[4, 4, 1, 1]", [(4.0, 4.0, 1.0, 1.0)]),  # inverted: read as it stands, judged later
        ("There is none.", []),
        ("", []),
        ("[]", []),
        ("[[], []]", []),
        ("```json\n[]\n```", []),
        ("1, 2, 30, 40", []),
        ("])}", []),
    ],
)
def test_boxes_are_read_in_order(text, boxes):
    assert read_boxes(text) == boxes


FOUR = "a box must be four numbers [x1, y1, x2, y2]"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1, 2, 3]", FOUR),
        ("[1, 2, 3, 4, 5]", FOUR),
        ('["1", "2", "3", "4"]', FOUR),
        ("[true, false, true, true]", FOUR),
        ("[null, 1, 2, 3]", FOUR),
        ("[1, 2, 3, [4]]", FOUR),
        ('{"bbox_2d": "[1, 2, 3, 4]"}', FOUR),
        ('{"bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]}', FOUR),
        ('{"bbox_2d": {"x1": 1}}', FOUR),
        ("(1, 2)", FOUR),
        ("[NaN, 1, 2, 3]", f"{FOUR}, all finite"),
        ("[0, 0, Infinity, 3]", f"{FOUR}, all finite"),
        ("(0,0),(inf,-NaN)", f"{FOUR}, all finite"),
        ("[1e999, 1, 2, 3]", f"{FOUR}, all finite"),
        (f"[{'9' * 5000}, 1, 2, 3]", f"{FOUR}, all finite"),
        (f"({'9' * 5000},1),(2,3)", f"{FOUR}, all finite"),
        ('{"point_2d": [1, 2]}', "an object has no bbox_2d"),
        ("{}", "an object has no bbox_2d"),
        ("[1, 2, 3, 4", "a bracket is not closed"),
        ('["never closed, 1, 2]', "a bracket is not closed"),
        ("[1, 2, 3, 4}", "not JSON"),
        ("[1, two, 3, 4]", "not JSON"),
        ("[1 2 3 4]", "not JSON"),
        ("{'bbox_2d': [1, 2, 3, 4]}", "not JSON"),
        ("[" * 9 + "]" * 9, "brackets are nested more than 8 deep"),
        ("[" * 200_000, "a bracket is not closed"),
        ("[" * 200_000 + "]" * 200_000, "brackets are nested more than 8 deep"),
        ("[(" * 100_000 + ")]" * 100_000, "brackets are nested more than 8 deep"),
        ("[1,2,3,4]" * (MAX_PLACES + 1), f"more than {MAX_PLACES} places"),
    ],
)
def test_what_is_no_box_is_refused_with_the_reason(text, reason):
    assert read_boxes(text) == [Refused(reason)]


def test_a_refused_place_keeps_its_place_in_the_order():
    text = "[1, 2, 30, 40.5], [1, 2, 3], [oh], [5, 6, 7, 8]"
    assert read_boxes(text) == [A, Refused(FOUR), Refused("not JSON"), B]


def test_as_many_places_as_allowed_are_read():
    assert read_boxes("[5,6,7,8]" * MAX_PLACES) == [B] * MAX_PLACES
    assert read_boxes(json.dumps([[5, 6, 7, 8]] * MAX_PLACES)) == [B] * MAX_PLACES


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("[3, 4]", [(3.0, 4.0)]),
        ("(3, 4)", [(3.0, 4.0)]),
        ("(3,4), then (5,6)", [(3.0, 4.0), (5.0, 6.0)]),
        ("(3,4),(5,6)", [(3.0, 4.0), (5.0, 6.0)]),
        ("[[3, 4], [5, 6]]", [(3.0, 4.0), (5.0, 6.0)]),
        ('{"point_2d": [3, 4], "label": "x"}', [(3.0, 4.0)]),
        ('[{"point": [3, 4]}, {"point_2d": [5, 6]}]', [(3.0, 4.0), (5.0, 6.0)]),
        ("[5, 6, 7, 8]", [B]),
        ('{"bbox_2d": [5, 6, 7, 8]}', [B]),
        ("[3]", [Refused("a point must be two numbers [x, y]")]),
        ("[true, 4]", [Refused("a point must be two numbers [x, y]")]),
        ("(nan, 4)", [Refused("a point must be two numbers [x, y], all finite")]),
        ("(see below)", []),
        ("3, 4", []),
    ],
)
def test_points_are_read_in_order(text, points):
    assert read_points(text) == points


NO_SPAN = Refused("a span must be two times [start, end]")


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("[12.3, 15]", [(12.3, 15.0)]),
        ("(12.3, 15)", [(12.3, 15.0)]),
        ("[12.3s, 15.0 s]", [(12.3, 15.0)]),
        ("[00:12.3 - 00:15]", [(12.3, 15.0)]),
        ("[[1, 2], [3, 4]]", [(1.0, 2.0), (3.0, 4.0)]),
        ('{"start": 12.3, "end": 15}', [(12.3, 15.0)]),
        ('{"start_time": "00:12.3", "end_time": "15 s"}', [(12.3, 15.0)]),
        ('```json\n[{"start": 1, "end": 2}, {"start": "0:03", "end": 4}]\n```', [(1.0, 2.0), (3.0, 4.0)]),
        ('["01:00", "01:30.25"]', [(60.0, 90.25)]),
        ("12.3s to 15s", [(12.3, 15.0)]),
        ("12.3 - 15.0 seconds", [(12.3, 15.0)]),
        ("12.3 \u2013 15.0 seconds", [(12.3, 15.0)]),
        ("12.3-15.0s", [(12.3, 15.0)]),
        ("It happens between 12.3 s and 15 s.", [(12.3, 15.0)]),
        ("From 1 second until 2 seconds, then 3 to 4 secs.", [(1.0, 2.0), (3.0, 4.0)]),
        ("00:12.30 to 00:15", [(12.3, 15.0)]),
        ("12:34.56 - 1:00:00", [(754.56, 3600.0)]),
        ("12.3 to 15", [(12.3, 15.0)]),
        ("  12.3 - 15 ", [(12.3, 15.0)]),
        ("15s to 12.3s", [(15.0, 12.3)]),  # inverted: read as it stands, judged later
        ("-5s to 3s", [(-5.0, 3.0)]),
        ("[-5, 3]", [(-5.0, 3.0)]),
        ("2-3 people walk in", []),
        ("3 to 5 minutes", []),
        ("at 12.3 s", []),
        ("12.3s, 15s", []),
        ("", []),
        ("[1, 2, 3]", [NO_SPAN]),
        ("[true, 2]", [NO_SPAN]),
        ("[NaN, 2]", [NO_SPAN]),
        ("[1, Infinity]", [NO_SPAN]),
        (f"[1, {'9' * 5000}]", [NO_SPAN]),
        (f"1s to {'9' * 5000}s", [NO_SPAN]),
        ('{"start": 1}', [NO_SPAN]),
        ('{"start": 1, "end": "later"}', [NO_SPAN]),
        ("00:75 to 00:80", [NO_SPAN]),
        ("1:75:00 to 2:00:00", [NO_SPAN]),
        ("[oh, 2]", [Refused("not JSON")]),
    ],
)
def test_spans_are_read_in_order(text, spans):
    assert read_spans(text) == spans


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (3.5, 3.5),
        ("3.5", 3.5),
        (" 3.5 seconds ", 3.5),
        ("3.5S", 3.5),
        ("0:03.5", 3.5),
        ("90:00", 5400.0),
        ("1:02:03.5", 3723.5),
        ("-0:03", -3.0),
        ("1:2", None),
        ("1:60", None),
        ("1:60:00", None),
        ("1:02:03:04", None),
        ("3 min", None),
        ("soon", None),
        ("", None),
        (float("nan"), None),
        (True, None),
        (None, None),
        ([3.5], None),
    ],
)
def test_a_time_is_seconds_or_a_clock(value, seconds):
    assert read_time(value) == seconds


TIMED = Refused('a timed box must be {"time": seconds, "bbox_2d": [x1, y1, x2, y2]}')


@pytest.mark.parametrize(
    ("text", "track"),
    [
        ('[{"time": 1, "bbox_2d": [5, 6, 7, 8]}, {"time": "0:02", "bbox": [5, 6, 7, 8]}]', [(1.0, B), (2.0, B)]),
        ('{"time": 1.5, "bbox_2d": [5, 6, 7, 8]}', [(1.5, B)]),
        ("[]", []),
        ("[5, 6, 7, 8]", [TIMED]),
        ('[{"bbox_2d": [5, 6, 7, 8]}]', [Refused("a timed box must have a time")]),
        ('[{"time": true, "bbox_2d": [5, 6, 7, 8]}]', [Refused("a timed box must have a time")]),
        ('[{"time": 1, "bbox_2d": [5, 6, 7]}]', [Refused(FOUR)]),
        ('[{"time": 1}]', [Refused("an object has no bbox_2d")]),
    ],
)
def test_timed_boxes_are_read_in_order(text, track):
    assert read_track(text) == track


HOSTILE = [
    "<think></think><answer>",
    "[",
    "(",
    "[1,2,",
    "(1,",
    "(1,2),",
    "(1,2) ",
    '["',
    '[\\"',
    '"',
    '{"a":',
    '{"bbox_2d":[',
    "[]",
    "[1,2,3,4]",
    "1 to ",
    "1s ",
    "1-",
    "1:",
    "9",
    "1e",
    "1.",
    "-",
    " ",
    "1" + " " * 1000,
    "(1" + " " * 1000,
    "(1,2)" + " " * 1000,
    "nan",
    "\\",
    "\ud800",
    "]",
    "[\0]",
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hundred_kilobytes_of_anything_is_read_or_refused(piece, reader):
    # A scan that is not linear would not come to its end.
    for text in (piece * (100_000 // len(piece)), '[1, "' + piece * (100_000 // len(piece))):
        assert len(reader(text)) <= MAX_PLACES


PIECES = [
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    ",",
    ":",
    '"',
    "\\",
    " ",
    "-",
    "1",
    "23.5",
    "1e9",
    "NaN",
    "true",
    "bbox_2d",
    "s",
]


@pytest.mark.parametrize("reader", READERS)
@given(text=st.lists(st.sampled_from([*PIECES, '"time"', '"start"', "to", "1:02"]), max_size=40).map("".join))
def test_any_text_is_read_or_refused(reader, text):
    for place in reader(text):
        assert isinstance(place, (tuple, Refused))


numbers = st.floats(-1e4, 1e4, allow_nan=False)


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=5), st.booleans())
def test_boxes_written_as_json_come_back(boxes, labelled):
    value = [{"bbox_2d": box, "label": "a [1, 2] (cat)"} for box in boxes] if labelled else boxes
    assert read_boxes(f"Here: ```json\n{json.dumps(value, indent=1)}\n``` done.") == boxes


@given(st.integers(0, 35999), st.integers(0, 99))
def test_a_clock_is_its_seconds(whole, hundredths):
    clock = f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}.{hundredths:02}"
    assert read_time(clock) == pytest.approx(whole + hundredths / 100)
    assert read_spans(f"from {clock} to {clock}") == [(read_time(clock), read_time(clock))]
