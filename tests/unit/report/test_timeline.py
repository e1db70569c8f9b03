import pytest

from mmrl.report.lines import complete
from mmrl.report.timeline import MAX_LABELS, clock, timeline


def line(medium, *regions, spans=()):
    medium = {"kind": "video", "parent": None, **medium}
    turns = [{"regions": [{"on": "v", **region}], "results": []} for region in regions]
    return complete(
        {"media": {"v": medium}, "segments": [{"media": ["v"]}], "turns": turns, "gold": {"spans": list(spans)}}
    )


def lanes(*regions):
    found = timeline(line({"span": [0, 100]}, *regions), "v")
    return [band.lane for band in found.looks], found.lanes


@pytest.mark.parametrize(
    ("seconds", "digits", "text"),
    [
        (0, 1, "0:00.0"),
        (59.96, 1, "1:00.0"),
        (75.31, 1, "1:15.3"),
        (75.5, 0, "1:16"),
        (3600, 0, "1:00:00"),
        (7384.25, 2, "2:03:04.25"),
        (-1.5, 1, "-0:01.5"),
    ],
)
def test_clock(seconds, digits, text):
    assert clock(seconds, digits) == text


@pytest.mark.parametrize(
    ("span", "shares", "texts"),
    [
        ([0, 60], [n / 6 for n in range(7)], ["0:00", "0:10", "0:20", "0:30", "0:40", "0:50", "1:00"]),
        ([12, 13], [n / 5 for n in range(6)], ["0:12.0", "0:12.2", "0:12.4", "0:12.6", "0:12.8", "0:13.0"]),
        ([50, 650], [n / 5 + 7 / 60 for n in range(5)], ["2:00", "4:00", "6:00", "8:00", "10:00"]),
    ],
)
def test_labels_are_round_times(span, shares, texts):
    found = timeline(line({"span": span}), "v").labels
    assert [text for _, text in found] == texts
    assert [share for share, _ in found] == pytest.approx(shares)


@pytest.mark.parametrize("length", [0.001, 7.3, 250, 7000, 1e9])
def test_a_line_of_any_length_has_few_labels(length):
    assert len(timeline(line({"span": [3, 3 + length]}), "v").labels) <= MAX_LABELS + 1


def test_a_medium_without_length_has_a_line():
    found = timeline(line({"span": [5, 5], "times": [5]}, {"times": [5.0]}), "v")
    assert (found.ticks, found.looks[0].left) == ("M0,0V1", 0.0)
    assert timeline(line({"span": None}), "v").ticks == ""


@pytest.mark.parametrize("parents", [{"v": "v"}, {"v": "w", "w": "v"}])
def test_a_medium_that_is_cut_from_itself_has_a_line(parents):
    one = line({"span": [0, 10], "times": [0, 5]}, {"span": [0, 10]})
    media = {key: {**one["media"]["v"], "parent": parent} for key, parent in parents.items()}
    assert [band.kind for band in timeline({**one, "media": media}, "v").looks][:1] == ["asked"]


def test_bands_are_cut_at_the_edges_and_left_out_beyond_them():
    found = timeline(
        line({"span": [10, 20]}, {"span": [15, 40]}, {"span": [30, 40]}, {"times": [11, 25]}, spans=[[0, 12]]), "v"
    )
    assert [(band.kind, band.left, band.width) for band in (*found.gold, *found.looks)] == [
        ("gold", 0.0, pytest.approx(0.2)),
        ("asked", 0.5, 0.5),
        ("asked moment", pytest.approx(0.1), 0.0),
    ]


def test_what_overlaps_lies_in_lanes_of_its_own():
    assert lanes({"span": [0, 50]}, {"span": [10, 20]}, {"span": [60, 70]}, {"span": [15, 65]}) == ([0, 1, 0, 2], 3)
    assert lanes({"times": [10, 90]}, {"span": [20, 30]}, {"times": [90]}) == ([0, 0, 0, 1], 2)
    assert lanes({"span": [200, 300]}) == ([], 0)


def test_ticks_that_fall_together_are_one():
    times = [n / 100 for n in range(100_000)]
    assert timeline(line({"span": [0, 1000], "times": times}), "v").ticks.count("M") == 1001


def test_an_envelope_is_an_outline_with_its_mirror_image():
    assert timeline(line({"kind": "audio", "span": [0, 1], "envelope": [0.5, 2.0]}), "v").wave == (
        "M250.0,-0.500 L750.0,-1.000 L750.0,1.000 L250.0,0.500Z"
    )
