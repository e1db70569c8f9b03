"""Media are loaded ahead, within their share of the cache; failures are silent, and nothing is left running."""

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from media_files import write_video

from mmrl.cache.media import MediaCache, MediaLoader
from mmrl.data.dataset import BadRows, Dataset, Mixture
from mmrl.data.prefetch import THREADS, Prefetcher
from mmrl.errors import MediaError
from mmrl.processors import pool
from mmrl.processors.image import Image
from mmrl.processors.video import Video
from mmrl.types import Media, MediaRef

PATIENCE_S = 60


@dataclass(frozen=True)
class Bytes:
    """A processor that gives 100 bytes, waits at the gate, and notes what it was asked for and by whom."""

    gate: threading.Event = field(default_factory=threading.Event, compare=False)
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0), compare=False)
    calls: list = field(default_factory=list, compare=False)

    def load(self, ref):
        self.calls.append((ref.path, threading.current_thread()))
        self.begun.release()
        assert self.gate.wait(PATIENCE_S)
        if ref.path.startswith("bad"):
            raise SystemExit(ref.path) if ref.path == "bad exit" else MediaError(ref.path)
        return Media(kind="audio", key=ref.path, data=np.zeros(100, np.uint8))

    @property
    def paths(self):
        return [path for path, _ in self.calls]


@pytest.fixture
def bytes_():
    made = Bytes()
    made.gate.set()
    yield made
    made.gate.set()
    settle()


@pytest.fixture
def ahead(bytes_):
    """ahead(limit) is a Prefetcher with a cache of `limit` bytes."""
    return lambda limit=10_000: Prefetcher(MediaLoader({"audio": bytes_}, MediaCache(limit)))


def refs(*names):
    return [MediaRef(kind="audio", path=name) for name in names]


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def settle():
    """Wait until all that is wanted is loaded."""
    for thread in threads():
        thread.join(PATIENCE_S)
    assert threads() == []


def test_what_is_wanted_is_loaded_in_the_background_and_once(ahead, bytes_):
    prefetcher, names = ahead(), [str(number) for number in range(20)]
    prefetcher.start(refs(*names, *names))
    settle()
    assert sorted(bytes_.paths) == sorted(names)
    assert all(thread.name == "prefetch" for _, thread in bytes_.calls)
    for ref in refs(*names):
        prefetcher.media.load(ref)
    assert len(bytes_.calls) == 20  # the cache held them all


def test_loading_goes_on_while_the_caller_does_something_else(ahead, bytes_):
    bytes_.gate.clear()
    prefetcher = ahead()
    prefetcher.start(refs("a", "b", "c"))  # returns, although nothing can be loaded yet
    assert bytes_.begun.acquire(timeout=PATIENCE_S)
    bytes_.gate.set()
    settle()
    assert sorted(bytes_.paths) == ["a", "b", "c"]


def test_several_are_loaded_at_once():
    barrier = threading.Barrier(THREADS)

    class Together:
        def load(self, ref):
            barrier.wait(PATIENCE_S)  # passes once every thread has come here
            return Media(kind="audio", key=ref.path, data=np.zeros(1))

    loader = MediaLoader({"audio": Together()}, MediaCache())
    Prefetcher(loader).start(refs(*(str(number) for number in range(THREADS))))
    settle()
    assert not barrier.broken
    assert len(loader.cache) == THREADS


def test_who_needs_what_is_being_loaded_waits_for_it(ahead, bytes_):
    bytes_.gate.clear()
    prefetcher = ahead()
    prefetcher.start(refs("a"))
    assert bytes_.begun.acquire(timeout=PATIENCE_S)
    found = []
    reader = threading.Thread(target=lambda: found.append(prefetcher.media.load(*refs("a"))))
    reader.start()
    bytes_.gate.set()
    reader.join(PATIENCE_S)
    assert found[0].key == "a"
    assert bytes_.paths == ["a"]


def test_new_wishes_replace_those_that_are_not_begun(ahead, bytes_):
    bytes_.gate.clear()
    prefetcher = ahead()
    prefetcher.start(refs(*(f"old {number}" for number in range(20))))
    for _ in range(THREADS):
        assert bytes_.begun.acquire(timeout=PATIENCE_S)
    prefetcher.start(refs("new"))
    bytes_.gate.set()
    settle()
    assert sorted(bytes_.paths) == ["new", *sorted(f"old {number}" for number in range(THREADS))]


@pytest.mark.parametrize("limit", [0, 100, 1000, 2000])
def test_what_comes_never_drives_out_what_is_in_use(ahead, bytes_, limit):
    prefetcher = ahead(limit)
    current = [str(number) for number in range(limit // 200)]  # half of the cache
    for ref in refs(*current):
        prefetcher.media.load(ref)
    prefetcher.start(refs(*(f"coming {number}" for number in range(50))))
    settle()
    loaded = len(bytes_.calls) - len(current)
    assert loaded * 100 <= max(limit // 2, THREADS * 100 if limit else 0)
    assert loaded >= limit // 200 - 1 - THREADS
    if limit >= 1000:
        assert loaded > 0
        for ref in refs(*current):
            prefetcher.media.load(ref)
        assert len(bytes_.calls) == len(current) + loaded


def test_what_is_too_large_is_tried_once_and_left_alone(ahead, bytes_):
    prefetcher = ahead(100)
    for _ in range(5):
        prefetcher.start(refs(*(str(number) for number in range(50))))
        settle()
    assert len(bytes_.calls) <= THREADS


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_is_silent_and_is_raised_where_the_medium_is_needed(ahead, bytes_):
    prefetcher = ahead()
    prefetcher.start(refs("bad", "bad exit", "a"))
    settle()
    assert sorted(bytes_.paths) == ["a", "bad", "bad exit"]
    with pytest.raises(MediaError, match="bad"):
        prefetcher.media.load(*refs("bad"))
    prefetcher.media.load(*refs("a"))
    assert len(bytes_.calls) == 4


def test_closing_waits_for_no_decoding_that_hangs_and_begins_no_other(ahead, bytes_, monkeypatch):
    monkeypatch.setattr("mmrl.data.prefetch.PATIENCE_S", 0.01)
    bytes_.gate.clear()
    prefetcher = ahead()
    prefetcher.start(refs(*(str(number) for number in range(50))))
    for _ in range(THREADS):
        assert bytes_.begun.acquire(timeout=PATIENCE_S)
    prefetcher.close()
    assert len(threads()) == THREADS
    bytes_.gate.set()
    settle()
    assert len(bytes_.calls) == THREADS


def test_closing_leaves_no_thread_where_nothing_hangs(ahead):
    prefetcher = ahead()
    prefetcher.close()
    prefetcher.start(refs(*(str(number) for number in range(50))))
    prefetcher.close()
    assert threads() == []


# Rows


@pytest.fixture
def dataset(tmp_path, write_rows, write_png):
    """dataset(name, ...) is a Dataset with a row for each name; there is a picture for each but "gone"."""

    def make(*names, processor=None, file="rows.jsonl"):
        for name in names:
            if name != "gone.png":
                write_png(name)
        rows = [{"messages": [{"role": "user", "content": "<image>?"}], "images": [name]} for name in names]
        bad = BadRows(tmp_path / "errors.jsonl", 1.0, lambda line: None)
        loader = MediaLoader({"image": processor or Image()}, MediaCache())
        return Dataset(write_rows(*rows, name=file), loader, bad)

    return make


def test_a_row_that_cannot_be_used_is_counted_where_it_is_drawn_and_once(dataset):
    rows = dataset("a.png", "gone.png")
    prefetcher = Prefetcher(rows.media)
    prefetcher.start(ref for index in range(len(rows)) for ref in rows.refs(index))
    settle()
    assert rows.bad.count == 0
    assert len(rows.media.cache) == 1
    assert [rows.load(index) is None for index in (0, 1, 1)] == [False, True, True]
    assert rows.bad.count == 1


def test_a_mixture_knows_the_media_of_its_rows(dataset):
    parts = dataset("a.png", "b.png", file="first.jsonl"), dataset("c.png", file="second.jsonl")
    mixture = Mixture(parts, [1.0, 1.0])
    assert [ref.path for index in range(3) for ref in mixture.refs(index)] == ["a.png", "b.png", "c.png"]


# Processes


@pytest.fixture
def clips(tmp_path):
    for number in range(4):
        write_video(tmp_path / f"{number}.mp4", numbers=range(20 * number, 20 * number + 20))
    return [MediaRef(kind="video", path=f"{number}.mp4", root=str(tmp_path)) for number in range(4)]


def test_videos_are_the_same_however_they_were_loaded(clips):
    video = Video(min_pixels=784, max_pixels=784, frames=4)
    loader = MediaLoader({"video": video}, MediaCache())
    Prefetcher(loader).start(clips)
    settle()
    assert len(loader.cache) == 4
    for ref in clips:
        np.testing.assert_array_equal(loader.load(ref).data, video.load(ref).data)
    pool.POOL.close()


def test_a_worker_that_dies_costs_nothing_but_its_medium(clips, monkeypatch):
    video, died = Video(min_pixels=784, max_pixels=784, frames=4), []
    take = pool.POOL.take

    def take_and_kill():
        worker, fresh = take()
        if threading.current_thread().name == "prefetch" and not died:
            died.append(worker.process.pid)
            worker.process.kill()
        return worker, True  # as new: it is not replaced

    video.load(clips[3])  # finds out what decodes
    monkeypatch.setattr(pool.POOL, "take", take_and_kill)
    loader = MediaLoader({"video": video}, MediaCache())
    Prefetcher(loader).start(clips)
    settle()
    assert len(died) == 1
    assert len(loader.cache) == 3
    assert [loader.load(ref).kind for ref in clips] == ["video"] * 4
    pool.POOL.close()


EXIT = """
import sys, threading
from mmrl.cache.media import MediaCache, MediaLoader
from mmrl.data.prefetch import Prefetcher
from mmrl.types import MediaRef

begun = threading.Event()

class Hanging:
    def load(self, ref):
        begun.set()
        threading.Event().wait()

Prefetcher(MediaLoader({"image": Hanging()}, MediaCache())).start([MediaRef(kind="image", path="a")])
assert begun.wait(60)
print("left", flush=True)
"""

WORKER = """
import os, signal, sys, threading
from mmrl.processors import pool
from mmrl.processors.video import Video
from mmrl.cache.media import MediaCache, MediaLoader
from mmrl.data.prefetch import Prefetcher
from mmrl.types import MediaRef

video, ref = Video(), MediaRef(kind="video", path=sys.argv[1], root=sys.argv[2])
video.load(ref)  # a worker is there
(worker,) = pool.POOL.idle
os.kill(worker.process.pid, signal.SIGSTOP)  # as one whose decoder hangs
taken, take = threading.Event(), pool.POOL.take

def noted():
    found = take()
    taken.set()
    return found

pool.POOL.take = noted
Prefetcher(MediaLoader({"video": video}, MediaCache())).start([ref])
assert taken.wait(60)
print(worker.process.pid, flush=True)
"""


def run(code, *arguments):
    path = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_what_hangs_holds_up_no_exit():
    result = run(EXIT)
    assert (result.returncode, result.stdout, result.stderr) == (0, "left\n", "")


def test_a_worker_that_hangs_ends_with_the_program(clips):
    result = run(WORKER, clips[0].path, clips[0].root)
    assert (result.returncode, result.stderr) == (0, "")
    with pytest.raises(FileNotFoundError):
        running(int(result.stdout))


def running(pid):
    """FileNotFoundError for a process that has ended; one whose parent has gone may wait to be collected."""
    status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    if status == "Z":
        raise FileNotFoundError
