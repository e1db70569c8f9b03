"""What was decoded is not decoded again, by whomever it is asked for, and memory stays bounded."""

import contextlib
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from mmrl.cache.media import MediaCache, MediaLoader, size
from mmrl.errors import MediaError
from mmrl.types import Media, MediaRef

CALLS = []


@dataclass(frozen=True)
class Zeros:
    """A processor that makes silence, slowly, and notes what it was asked for."""

    length: int = 100
    seconds: float = field(default=0.0, compare=False)

    def load(self, ref):
        CALLS.append((self.length, ref.path))
        time.sleep(self.seconds)
        if ref.path == "bad":
            raise MediaError("audio bad: cannot be decoded")
        return Media(kind="audio", key=str(ref.path), data=np.zeros(self.length, np.float32))

    def provenance(self):
        return {"zeros": str(self.length)}


@pytest.fixture(autouse=True)
def _forget():
    CALLS.clear()


def ref(name):
    return MediaRef(kind="audio", path=name)


def test_equal_processors_share_what_was_decoded_and_others_do_not():
    cache = MediaCache()
    assert cache.load(Zeros(), ref("a")) is cache.load(Zeros(), ref("a"))
    cache.load(Zeros(length=5), ref("a"))
    assert CALLS == [(100, "a"), (5, "a")]


def test_threads_that_ask_at_once_wait_for_one_decoding():
    cache, found = MediaCache(), []
    threads = [
        threading.Thread(target=lambda: found.append(cache.load(Zeros(seconds=0.2), ref("a")))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(CALLS) == 1


def test_a_failure_is_raised_each_time_and_nothing_is_held():
    cache = MediaCache()
    for _ in range(2):
        with pytest.raises(MediaError):
            cache.load(Zeros(), ref("bad"))
    assert (len(CALLS), len(cache), cache.num_bytes) == (2, 0, 0)


def test_the_least_recently_used_goes_first_and_the_size_is_kept():
    cache = MediaCache(limit=800)
    for name in ("a", "b", "a", "c", "a", "b"):
        cache.load(Zeros(), ref(name))
    assert [path for _, path in CALLS] == ["a", "b", "c", "b"]
    assert cache.num_bytes == 800
    cache.clear()
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_an_original_counts_once():
    pixels = np.zeros((10, 10, 3), np.uint8)
    shown = Media(kind="image", key="a", data=pixels, original=pixels)
    assert size(shown) == 300
    assert size(Media(kind="image", key="a", data=pixels, original=pixels.copy())) == 600


def test_a_loader_names_the_key_of_a_kind_that_it_cannot_load_and_tells_where_pixels_come_from():
    loader = MediaLoader({"audio": Zeros()}, MediaCache())
    with pytest.raises(MediaError, match="set data.video"):
        loader.load(MediaRef(kind="video", path="a.mp4"))
    assert loader.provenance({"audio"}) == {"zeros": "100"}


def test_a_file_that_is_written_anew_is_decoded_anew(tmp_path):
    cache, path = MediaCache(), tmp_path / "a.wav"
    path.write_bytes(b"first")
    here = MediaRef(kind="audio", path="a.wav", root=str(tmp_path))
    cache.load(Zeros(), here)
    cache.load(Zeros(), here)
    path.write_bytes(b"the second one")
    cache.load(Zeros(), here)
    assert len(CALLS) == 2


def test_many_threads_and_failures_leave_an_exact_account():
    cache, names = MediaCache(), ["a", "bad", "b"] * 4
    threads = [threading.Thread(target=_try_to_load, args=(cache, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(cache), cache.num_bytes) == (2, 800)


def _try_to_load(cache, name):
    with contextlib.suppress(MediaError):
        cache.load(Zeros(seconds=0.01), ref(name))
