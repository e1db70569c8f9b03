"""Rows that cannot be used are counted, listed and told; the order of the others is reproducible."""

import json

import pytest

from mmrl.data.dataset import BadRows, Dataset
from mmrl.data.sampler import Sampler
from mmrl.errors import DataError
from mmrl.processors.image import Image


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


def listed(bad):
    return [json.loads(line)["error"] for line in bad.path.read_text().splitlines()]


def test_a_row_is_loaded_with_its_media_in_order(write_rows, write_png, bad):
    write_png("a.png", 56, 84)
    write_png("b.png", 84, 56)
    path = write_rows({"messages": [{"role": "user", "content": "<image><image>"}], "images": ["b.png", "a.png"]})
    loaded = Dataset(path, Image(), bad, cached=4).load(0)
    assert loaded.sample.id == "0"
    assert [medium.frame.original for medium in loaded.media] == [(84, 56), (56, 84)]
    assert bad.count == 0
    assert not bad.path.exists()


def test_a_missing_image_names_the_row_and_the_file(write_rows, bad):
    path = write_rows(row(7, "gone.png"))
    assert Dataset(path, Image(), bad, cached=4).load(0) is None
    expected = f"{path} row 0 (id 7): image gone.png: cannot be read (No such file or directory); check the path"
    assert listed(bad) == [expected]
    assert bad.told == [f"skipped: {expected}"]


def test_a_truncated_image_spoils_its_own_row_only(write_rows, write_png, bad):
    whole = write_png("a.png").read_bytes()
    (write_png("b.png")).write_bytes(whole[: len(whole) // 2])
    dataset = Dataset(write_rows(row(0, "a.png"), row(1, "b.png")), Image(), bad, cached=4)
    assert dataset.load(0) is not None
    assert dataset.load(1) is None
    assert "(id 1): image b.png: cannot be decoded" in listed(bad)[0]


@pytest.mark.parametrize("box", [[56, 0, 80, 20], [0, 60, 20, 80], [-9, -9, 0, 0]])
def test_a_gold_box_outside_the_image_is_a_bad_row(write_rows, write_png, bad, box):
    write_png("a.png", 56, 56)
    dataset = Dataset(write_rows(row(0, "a.png", boxes=[[0, 0, 9, 9], box])), Image(), bad, cached=4)
    assert dataset.load(0) is None
    assert "boxes.1: gold the box lies outside the image of (56, 56)" in listed(bad)[0]


def test_a_gold_box_without_an_image_is_a_bad_row(write_rows, bad):
    assert Dataset(write_rows(row(0, boxes=[[0, 0, 9, 9]])), Image(), bad, cached=4).load(0) is None
    assert "boxes.0: the row has a gold box but no image" in listed(bad)[0]


def test_a_gold_box_partly_inside_is_kept(write_rows, write_png, bad):
    write_png("a.png", 56, 56)
    loaded = Dataset(write_rows(row(0, "a.png", boxes=[[40, 40, 80, 80]])), Image(), bad, cached=4).load(0)
    assert loaded.sample.gold.boxes == ((40.0, 40.0, 80.0, 80.0),)


def test_a_bad_row_is_counted_once_however_often_it_is_drawn(write_rows, bad):
    dataset = Dataset(write_rows(row(0, "gone.png"), row(1)), Image(), bad, cached=4)
    assert [dataset.load(0), dataset.load(0)] == [None, None]
    assert bad.count == 1
    assert len(listed(bad)) == 1


def test_unreadable_rows_are_counted_when_the_file_is_opened(write_rows, bad):
    path = write_rows("{", row(1), "[]")
    assert len(Dataset(path, Image(), bad, cached=4)) == 1
    assert [line.partition(": ")[0] for line in listed(bad)] == [f"{path} row 0", f"{path} row 2"]


def test_too_many_bad_rows_stop_the_run_and_name_the_list(write_rows, tmp_path):
    errors = tmp_path / "data_errors.jsonl"
    path = write_rows(*[row(number, f"gone{number}.png") for number in range(10)])
    dataset = Dataset(path, Image(), BadRows(errors, 0.2, str), cached=4)
    assert [dataset.load(0), dataset.load(1)] == [None, None]
    with pytest.raises(DataError) as caught:
        dataset.load(2)
    assert str(caught.value) == (
        f"3 of 10 rows cannot be used, more than data.max_bad_fraction = 0.2 allows; {errors} lists them"
    )
    assert len(errors.read_text().splitlines()) == 3


def test_no_bad_row_is_allowed_at_fraction_zero(write_rows, tmp_path):
    with pytest.raises(DataError, match="1 of 2 rows cannot be used"):
        Dataset(write_rows("{", row(1)), Image(), BadRows(tmp_path / "e.jsonl", 0.0, str), cached=4)


def test_bad_rows_of_one_file_do_not_count_against_another(write_rows, tmp_path):
    bad = BadRows(tmp_path / "e.jsonl", 0.2, str)
    large = write_rows(*["{"] * 4, *[row(number) for number in range(16)], name="large.jsonl")
    small = write_rows("{", *[row(number) for number in range(9)], name="small.jsonl")
    assert len(Dataset(large, Image(), bad, cached=4)) == 16
    assert len(Dataset(small, Image(), bad, cached=4)) == 9  # 1 of 10 is within 0.2


def test_a_file_without_a_usable_row_is_refused(write_rows, bad):
    with pytest.raises(DataError, match=r"rows\.jsonl: holds no usable row"):
        Dataset(write_rows("{"), Image(), bad, cached=4)


def test_a_limit_takes_rows_from_the_start_of_the_file(write_rows, bad):
    dataset = Dataset(write_rows(*[row(number) for number in range(5)]), Image(), bad, cached=4, limit=2)
    assert [sample.id for sample in dataset.samples] == ["0", "1"]


def test_a_cached_image_is_decoded_once(write_rows, write_png, bad):
    write_png("a.png")
    image = CountingImage()
    dataset = Dataset(write_rows(row(0, "a.png"), row(1, "a.png")), image, bad, cached=1)
    assert dataset.load(0).media[0] is dataset.load(1).media[0]
    assert image.paths == ["a.png"]


def test_the_cache_is_bounded_and_forgets_the_least_recently_used(write_rows, write_png, bad):
    for name in ("a.png", "b.png", "c.png"):
        write_png(name)
    image = CountingImage()
    dataset = Dataset(write_rows(*[row(n, f"{name}.png") for n, name in enumerate("abc")]), image, bad, cached=2)
    for index in (0, 1, 0, 2, 0, 1):
        dataset.load(index)
    assert image.paths == ["a.png", "b.png", "c.png", "b.png"]
    assert len(dataset._cache) == 2


def test_nothing_is_kept_with_a_cache_of_zero(write_rows, write_png, bad):
    write_png("a.png")
    image = CountingImage()
    dataset = Dataset(write_rows(row(0, "a.png")), image, bad, cached=0)
    dataset.load(0)
    dataset.load(0)
    assert image.paths == ["a.png", "a.png"]


def test_every_epoch_is_another_permutation_of_the_rows():
    sampler = Sampler(20, seed=3)
    first, second = ([sampler.draw() for _ in range(20)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))


def test_the_order_depends_on_the_seed_alone():
    def order(seed):
        sampler = Sampler(20, seed)
        return [sampler.draw() for _ in range(20)]

    assert order(3) == order(3)
    assert order(3) != order(4)


@pytest.mark.parametrize("drawn", [0, 5, 7, 8, 14, 20])
def test_a_sampler_goes_on_from_its_position(drawn):
    whole = Sampler(7, seed=1)
    rows = [whole.draw() for _ in range(40)]
    resumed = Sampler(7, seed=1)
    resumed.position = drawn
    assert [resumed.draw() for _ in range(40 - drawn)] == rows[drawn:]
    assert resumed.position == 40


def test_a_position_may_be_set_back_within_a_run():
    sampler = Sampler(7, seed=1)
    rows = [sampler.draw() for _ in range(10)]
    sampler.position = 2
    assert [sampler.draw() for _ in range(8)] == rows[2:]
