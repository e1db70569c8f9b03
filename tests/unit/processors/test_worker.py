"""A decoder may crash, hang or be killed: it costs one medium, and nothing is left running."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from media_files import read_number, write_video

from mmrl.errors import MediaError
from mmrl.processors import pool
from mmrl.processors.files import open_file
from mmrl.processors.video import Video
from mmrl.types import MediaRef

LIMITS = {"max_pixels": 10**6, "max_seconds": 1000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    write_video(path / "short.mp4")
    write_video(path / "long.mp4", numbers=[n % 4096 for n in range(800)], gop=800)
    return path


@pytest.fixture(autouse=True)
def _no_process_is_left():
    pool.POOL.close()
    yield
    pool.POOL.close()
    assert workers_of(os.getpid()) == []


def workers_of(parent):
    listing = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(line.split()[0]) for line in listing.stdout.splitlines() if "mmrl.processors.worker" in line]


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def alive(pid):
    """An orphan that has ended may wait for ever to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def short(folder, **fields):
    video = Video(min_pixels=784, max_pixels=24 * 784, frames=4, **fields)
    return video.load(MediaRef(kind="video", path="short.mp4", root=str(folder)))


def ask(file, timeout_s=60.0):
    """A call whose worker is in the middle of sending 800 frames."""
    look = {"frames": 800, "min_pixels": 400 * 784, "max_pixels": 400 * 784}
    request = {"job": "look", "look": look, "span": None, "limits": LIMITS, "backend": "pyav"}
    replies = pool.call(request, file, timeout_s=timeout_s, what="video long.mp4")
    next(replies)
    return replies, workers_of(os.getpid())


@pytest.mark.parametrize("kind", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_crash_costs_one_medium(folder, kind):
    with open_file(MediaRef(kind="video", path="long.mp4", root=str(folder)), 10**9) as file:
        replies, (worker,) = ask(file)
        os.kill(worker, kind)
        with pytest.raises(MediaError, match=rf"^video long.mp4: the decoder crashed \({kind.name}"):
            list(replies)
    assert workers_of(os.getpid()) == []
    assert [read_number(frame) for frame in short(folder).data] == [0, 15, 30, 45]


def test_a_hang_is_ended_at_its_limit(folder):
    with open_file(MediaRef(kind="video", path="long.mp4", root=str(folder)), 10**9) as file:
        replies, (worker,) = ask(file, timeout_s=2.0)
        os.kill(worker, signal.SIGSTOP)
        with pytest.raises(MediaError, match=r"^video long.mp4: decoding took over 2 s and was stopped"):
            list(replies)
    assert workers_of(os.getpid()) == []
    assert short(folder).times[0] == 0.0


def test_slow_work_is_ended_at_its_limit(folder):
    video = Video(frames=800, timeout_s=0.2)
    with pytest.raises(MediaError, match=r"^video long.mp4: decoding took over 0.2 s and was stopped"):
        video.load(MediaRef(kind="video", path="long.mp4", root=str(folder)))


def test_a_call_that_is_given_up_ends_its_worker(folder):
    with open_file(MediaRef(kind="video", path="long.mp4", root=str(folder)), 10**9) as file:
        replies, (_worker,) = ask(file)
        replies.close()
    assert workers_of(os.getpid()) == []


def test_an_idle_worker_is_used_again_and_replaced_when_dead(folder):
    short(folder)
    (first,) = workers_of(os.getpid())
    short(folder)
    with pytest.raises(MediaError):
        short(folder, max_source_pixels=1)  # a refusal is no reason to end it
    assert workers_of(os.getpid()) == [first]
    os.kill(first, signal.SIGKILL)
    assert short(folder).times[0] == 0.0
    assert first not in workers_of(os.getpid())


def test_threads_may_load_at_once(folder):
    def load(number):
        start = number % 5 * 0.5
        video = Video(min_pixels=784, max_pixels=24 * 784, frames=2)
        ref = MediaRef(kind="video", path="short.mp4", root=str(folder), span=(start, start + 0.5))
        return [read_number(frame) for frame in video.load(ref).data]

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(load, range(32)))
    assert results == [[n % 5 * 10, n % 5 * 10 + 5] for n in range(32)]
    assert len(workers_of(os.getpid())) <= 4


def test_a_forked_process_starts_its_own_workers(folder):
    short(folder)
    (mine,) = workers_of(os.getpid())
    code = f"""
import os
from mmrl.processors import pool
from mmrl.processors.video import Video
from mmrl.types import MediaRef
load = lambda: Video(frames=4).load(MediaRef(kind="video", path="short.mp4", root={str(folder)!r})).key
key = load()
child = os.fork()
if child == 0:
    good = not pool.POOL.idle and load() == key
    pool.POOL.close()
    os._exit(0 if good else 1)
assert os.waitpid(child, 0)[1] == 0
assert load() == key
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert workers_of(os.getpid()) == [mine]


def test_workers_end_with_their_parent(folder):
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from mmrl.processors.video import Video
from mmrl.types import MediaRef
load = lambda name, **more: Video(**more).load(MediaRef(kind="video", path=name, root={str(folder)!r}))
load("short.mp4")
print("ready", flush=True)
load("long.mp4", frames=800, min_pixels=400 * 784)
"""
    # No guard against being run as a main module: a worker must not run the script again.
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        (worker,) = workers_of(parent.pid)
        time.sleep(0.3)
        parent.kill()
    assert wait_for(lambda: not alive(worker))


def test_a_worker_imports_neither_torch_nor_transformers(folder):
    short(folder)
    (worker,) = workers_of(os.getpid())
    maps = Path(f"/proc/{worker}/maps").read_text()
    assert "libav" in maps
    assert "libtorch" not in maps
    code = "import sys, mmrl.processors.worker; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def resident_kib(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_five_hundred_opens_stay_flat_in_memory(tmp_path):
    write_video(tmp_path / "tiny.mp4", numbers=range(8), size=(96, 64))
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "tiny.mp4").read_bytes()[:400])
    video = Video(min_pixels=784, max_pixels=6 * 784, frames=4)
    sizes = []
    for number in range(500):
        name = "broken.mp4" if number % 10 == 9 else "tiny.mp4"
        try:
            video.load(MediaRef(kind="video", path=name, root=str(tmp_path)))
        except MediaError:
            assert name == "broken.mp4"  # noqa: PT017
        if number in (99, 499):
            (worker,) = workers_of(os.getpid())
            sizes.append((resident_kib(os.getpid()), resident_kib(worker), len(os.listdir(f"/proc/{worker}/fd"))))
    (parent, worker, files), (parent_later, worker_later, files_later) = sizes
    assert parent_later - parent < 8 * 1024
    assert worker_later - worker < 8 * 1024
    assert files_later == files
