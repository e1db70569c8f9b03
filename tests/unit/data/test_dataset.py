"""Rows that cannot be used are counted, listed and told; the order of the others is reproducible."""

import json

import pytest

from mmrl.cache.media import MediaCache, MediaLoader, size
from mmrl.data.dataset import BadRows, Dataset, Mixture
from mmrl.errors import DataError
from mmrl.processors.image import Image
from mmrl.types import MediaRef


class CountingImage:
    """Implements Processor: loads as Image does, and notes the files."""

    def __init__(self):
        self.image, self.paths = Image(), []

    def load(self, ref):
        self.paths.append(ref.path)
        return self.image.load(ref)


@pytest.fixture
def bad(tmp_path):
    """bad.told lists what was told."""
    told = []
    rows = BadRows(tmp_path / "run" / "data_errors.jsonl", 1.0, told.append)
    rows.told = told
    return rows


def row(number, image=None, **more):
    content = "<image>?" if image else "?"
    images = [image] if image else []
    return {"id": str(number), "messages": [{"role": "user", "content": content}], "images": images, **more}


def opened(path, bad, image=None, max_bytes=10**9, **more):
    return Dataset(path, MediaLoader({"image": image or Image()}, MediaCache(max_bytes)), bad, **more)


def listed(bad):
    return [json.loads(line)["error"] for line in bad.path.read_text().splitlines()]


def test_a_row_is_loaded_with_its_media_in_order(write_rows, write_png, bad):
    write_png("a.png", 56, 84)
    write_png("b.png", 84, 56)
    path = write_rows({"messages": [{"role": "user", "content": "<image><image>"}], "images": ["b.png", "a.png"]})
    loaded = opened(path, bad).load(0)
    assert loaded.sample.id == "0"
    assert [medium.frame.original for medium in loaded.media] == [(84, 56), (56, 84)]
    assert bad.count == 0
    assert not bad.path.exists()


def test_a_missing_image_names_the_row_and_the_file(write_rows, bad):
    path = write_rows(row(7, "gone.png"))
    assert opened(path, bad).load(0) is None
    expected = f"{path} row 0 (id 7): image gone.png: cannot be read (No such file or directory); check the path"
    assert listed(bad) == [expected]
    assert bad.told == [f"skipped: {expected}"]


def test_a_truncated_image_spoils_its_own_row_only(write_rows, write_png, bad):
    whole = write_png("a.png").read_bytes()
    (write_png("b.png")).write_bytes(whole[: len(whole) // 2])
    dataset = opened(write_rows(row(0, "a.png"), row(1, "b.png")), bad)
    assert dataset.load(0) is not None
    assert dataset.load(1) is None
    assert "(id 1): image b.png: cannot be decoded" in listed(bad)[0]


@pytest.mark.parametrize("box", [[56, 0, 80, 20], [0, 60, 20, 80], [-9, -9, 0, 0]])
def test_a_gold_box_outside_the_image_is_a_bad_row(write_rows, write_png, bad, box):
    write_png("a.png", 56, 56)
    dataset = opened(write_rows(row(0, "a.png", boxes=[[0, 0, 9, 9], box])), bad)
    assert dataset.load(0) is None
    assert "boxes.1: unusable gold: the box lies outside the image of (56, 56)" in listed(bad)[0]


def test_a_gold_box_without_an_image_is_a_bad_row(write_rows, bad):
    assert opened(write_rows(row(0, boxes=[[0, 0, 9, 9]])), bad).load(0) is None
    assert "boxes.0: the row has a gold box but no image" in listed(bad)[0]


def test_a_gold_box_partly_inside_is_kept(write_rows, write_png, bad):
    write_png("a.png", 56, 56)
    loaded = opened(write_rows(row(0, "a.png", boxes=[[40, 40, 80, 80]])), bad).load(0)
    assert loaded.sample.gold.boxes == ((40.0, 40.0, 80.0, 80.0),)


def test_a_bad_row_is_counted_once_however_often_it_is_drawn(write_rows, bad):
    dataset = opened(write_rows(row(0, "gone.png"), row(1)), bad)
    assert [dataset.load(0), dataset.load(0)] == [None, None]
    assert bad.count == 1
    assert len(listed(bad)) == 1


def test_a_row_that_is_listed_already_is_counted_and_not_listed_again(write_rows, bad):
    path = write_rows("{", row(1, "gone.png"), row(2))
    opened(path, bad).load(0)
    again = BadRows(bad.path, 1.0, str)
    opened(path, again).load(0)
    assert (bad.count, again.count) == (2, 2)
    assert len(listed(bad)) == 2


def test_a_torn_line_of_the_list_is_passed_over(write_rows, bad):
    path = write_rows("{", row(1))
    opened(path, bad)
    whole = bad.path.read_text()
    bad.path.write_text(whole + whole[:20])
    for _ in range(2):
        opened(write_rows("{", "[", row(1)), BadRows(bad.path, 1.0, str))
    lines = bad.path.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 2


def test_unreadable_rows_are_counted_when_the_file_is_opened(write_rows, bad):
    path = write_rows("{", row(1), "[]")
    assert len(opened(path, bad)) == 1
    assert [line.partition(": ")[0] for line in listed(bad)] == [f"{path} row 0", f"{path} row 2"]


def test_too_many_bad_rows_stop_the_run_and_name_the_list(write_rows, tmp_path):
    errors = tmp_path / "data_errors.jsonl"
    path = write_rows(*[row(number, f"gone{number}.png") for number in range(10)])
    dataset = opened(path, BadRows(errors, 0.2, str))
    assert [dataset.load(0), dataset.load(1)] == [None, None]
    with pytest.raises(DataError) as caught:
        dataset.load(2)
    assert str(caught.value) == (
        f"3 of 10 rows cannot be used, more than data.max_bad_fraction = 0.2 allows; {errors} lists them"
    )
    assert len(errors.read_text().splitlines()) == 3


def test_no_bad_row_is_allowed_at_fraction_zero(write_rows, tmp_path):
    with pytest.raises(DataError, match="1 of 2 rows cannot be used"):
        opened(write_rows("{", row(1)), BadRows(tmp_path / "e.jsonl", 0.0, str))


def test_bad_rows_of_one_file_do_not_count_against_another(write_rows, tmp_path):
    bad = BadRows(tmp_path / "e.jsonl", 0.2, str)
    large = write_rows(*["{"] * 4, *[row(number) for number in range(16)], name="large.jsonl")
    small = write_rows("{", *[row(number) for number in range(9)], name="small.jsonl")
    assert len(opened(large, bad)) == 16
    assert len(opened(small, bad)) == 9  # 1 of 10 is within 0.2


def test_a_file_without_a_usable_row_is_refused(write_rows, bad):
    with pytest.raises(DataError, match=r"rows\.jsonl: holds no usable row"):
        opened(write_rows("{"), bad)


def test_a_limit_takes_rows_from_the_start_of_the_file(write_rows, bad):
    dataset = opened(write_rows(*[row(number) for number in range(5)]), bad, limit=2)
    assert [sample.id for sample in dataset.samples] == ["0", "1"]


def test_a_cached_image_is_decoded_once(write_rows, write_png, bad):
    write_png("a.png")
    image = CountingImage()
    dataset = opened(write_rows(row(0, "a.png"), row(1, "a.png")), bad, image)
    assert dataset.load(0).media[0] is dataset.load(1).media[0]
    assert image.paths == ["a.png"]


def test_the_cache_is_bounded_in_bytes_and_forgets_the_least_recently_used(write_rows, write_png, bad):
    for name in ("a.png", "b.png", "c.png"):
        write_png(name)
    image = CountingImage()
    one = size(Image().load(MediaRef(kind="image", path="a.png", root=str(write_png("a.png").parent))))
    assert one == 2 * 56 * 56 * 3  # what the model sees, and the original that crops are cut from
    rows = write_rows(*[row(n, f"{name}.png") for n, name in enumerate("abc")])
    dataset = opened(rows, bad, image, max_bytes=2 * one)
    for index in (0, 1, 0, 2, 0, 1):
        dataset.load(index)
    assert image.paths == ["a.png", "b.png", "c.png", "b.png"]
    assert len(dataset.media.cache) == 2
    assert dataset.media.cache.num_bytes == 2 * one


def test_a_medium_larger_than_the_cache_is_loaded_and_not_kept(write_rows, write_png, bad):
    write_png("a.png")
    image = CountingImage()
    dataset = opened(write_rows(row(0, "a.png")), bad, image, max_bytes=56 * 56)
    assert dataset.load(0) is not None
    assert dataset.load(0) is not None
    assert image.paths == ["a.png", "a.png"]
    assert (len(dataset.media.cache), dataset.media.cache.num_bytes) == (0, 0)


def test_a_kind_that_nothing_loads_is_a_bad_row_that_names_the_key(write_rows, bad):
    rows = write_rows({"messages": [{"role": "user", "content": "<audio>"}], "audios": ["a.wav"]})
    assert opened(rows, bad).load(0) is None
    assert "audio a.wav: nothing is configured that loads it; set data.audio" in listed(bad)[0]


@pytest.mark.parametrize(
    ("gold", "error"),
    [
        ({"points": [[57, 3]]}, "points.0: gold point (57, 3) lies outside the image of (56, 56)"),
        ({"points": [[-1, 3]]}, "points.0: gold point (-1, 3) lies outside"),
        ({"spans": [[1, 2]]}, "spans: the row has gold times but no video or audio first"),
        ({"track": [[0, [0, 0, 9, 9]]]}, "spans: the row has gold times but no video or audio first"),
        ({"track": [[0, [60, 0, 90, 9]]]}, "track.0: unusable gold: the box lies outside the image"),
    ],
)
def test_gold_that_lies_outside_its_image_is_a_bad_row(write_rows, write_png, bad, gold, error):
    write_png("a.png", 56, 56)
    assert opened(write_rows(row(0, "a.png", **gold)), bad).load(0) is None
    assert error in listed(bad)[0]


def test_relative_gold_becomes_pixels_of_the_original_when_it_is_loaded(write_rows, write_png, bad):
    write_png("a.png", 200, 100)
    objects = {"ref": ["x"], "bbox": [[0.1, 0.2, 0.5, 1.0], [0.5, 0.5]], "bbox_type": "norm1"}
    rows = write_rows({"messages": [{"role": "user", "content": "?"}], "images": ["a.png"], "objects": objects})
    dataset = opened(rows, bad)
    assert dataset.samples[0].gold.boxes == ((0.1, 0.2, 0.5, 1.0),)
    sample = dataset.load(0).sample
    assert sample.gold.boxes == ((20.0, 20.0, 100.0, 100.0),)
    assert sample.gold.points == ((100.0, 50.0),)
    assert sample.metadata == {"objects": objects}


def test_relative_gold_over_1_is_a_bad_row(write_rows, write_png, bad):
    write_png("a.png", 200, 100)
    objects = {"bbox": [[10, 20, 50, 90]], "bbox_type": "norm1"}
    rows = write_rows({"messages": [{"role": "user", "content": "?"}], "images": ["a.png"], "objects": objects})
    assert opened(rows, bad).load(0) is None
    assert "boxes.0: unusable gold: the box lies outside the image of (200, 100)" in listed(bad)[0]


def test_the_format_of_a_file_is_told_once_with_its_reasons(write_rows, bad):
    told = []
    opened(write_rows({"problem": "?", "answer": "7"}), bad, tell=told.append)
    assert [line.partition(": ")[2] for line in told] == ["read as easyr1 (answer, problem)"]


def test_a_format_may_be_forced_and_media_may_lie_elsewhere(write_rows, write_png, bad, tmp_path):
    (tmp_path / "media").mkdir()
    write_png("media/a.png", 56, 84)
    rows = write_rows({"prompt": "<image>?", "answer": "7", "images": ["a.png"]})
    dataset = opened(rows, bad, format="trl", media_root=str(tmp_path / "media"))
    assert dataset.load(0).media[0].frame.original == (56, 84)


def test_a_file_that_lies_outside_the_media_root_is_a_bad_row(write_rows, write_png, bad, tmp_path):
    (tmp_path / "media").mkdir()
    outside = write_png("a.png")
    (tmp_path / "media" / "link.png").symlink_to(outside)
    names = ["../a.png", str(outside), "link.png"]
    dataset = opened(
        write_rows(*[row(n, name) for n, name in enumerate(names)]), bad, media_root=str(tmp_path / "media")
    )
    assert [dataset.load(number) for number in range(3)] == [None] * 3
    assert all("leads out of its folder" in line for line in listed(bad))


def test_an_absolute_path_inside_the_media_root_is_read(write_rows, write_png, bad):
    assert opened(write_rows(row(0, str(write_png("a.png")))), bad).load(0) is not None


def test_a_mixture_counts_through_its_files(write_rows, bad):
    first = opened(write_rows(row(0), row(1), name="a.jsonl"), bad)
    second = opened(write_rows(row(5), row(6), row(7), name="b.jsonl"), bad)
    mixture = Mixture([first, second], [1, 3])
    assert len(mixture) == 5
    assert [mixture.load(index).sample.id for index in range(5)] == ["0", "1", "5", "6", "7"]
    mixture.refuse(3, "odd")
    assert listed(bad) == [f"{second.path} row 1 (id 6): odd"]
    drawn = [mixture.sampler(0).draw() for _ in range(1)]
    assert drawn[0] >= 2  # the heavier file comes first
