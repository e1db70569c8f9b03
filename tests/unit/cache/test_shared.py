"""Features that other processes read: written once for all who show them, there as long as an episode is open."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from mmrl.cache import shared as module
from mmrl.cache.features import FeatureCache
from mmrl.cache.shared import Publisher, SharedFeatures, Slice
from mmrl.errors import MmrlError


def files(shared):
    return sorted(str(path.relative_to(shared.folder)) for path in shared.folder.rglob("*") if path.is_file())


def read(shared, name):
    return load_file(shared.folder / name / "encoder_cache.safetensors")["ec_cache"]


def test_a_file_stays_until_its_last_episode_is_released(tmp_path):
    shared = SharedFeatures(tmp_path)
    shared.put("a", torch.arange(6.0).reshape(3, 2))
    shared.hold("a", "0/0")
    shared.hold("a", "0/1")
    shared.release("0/0")
    assert torch.equal(read(shared, "a"), torch.arange(6.0).reshape(3, 2))
    assert shared.bytes_written == 24
    shared.release("0/1")
    shared.release("0/1")
    assert not shared.holds("a")
    assert files(shared) == [f"{shared.run}.lock"]


def test_closing_leaves_what_others_wrote_into_a_given_folder(tmp_path):
    (tmp_path / "mine").write_text("x")
    shared = SharedFeatures(tmp_path)
    name = f"{shared.run}.a"
    shared.put(name, torch.zeros(1, 2))
    shared.hold(name, "0/0")
    shared.close()
    assert files(shared) == ["mine"]


CHILD = """
import sys, time
from pathlib import Path
import torch
from mmrl.cache import shared
shared.MEMORY = Path(sys.argv[1])
own = shared.SharedFeatures(sys.argv[2] if len(sys.argv) > 2 else None)
own.put(f"{own.run}.a", torch.zeros(1, 2))
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """other(folder) is another trainer, which has written something."""
    started = []

    def start(*folder):
        command = [sys.executable, "-c", CHILD, str(tmp_path), *map(str, folder)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "ready\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_what_a_killed_trainer_left_is_removed_and_a_living_ones_stays(monkeypatch, tmp_path, other):
    monkeypatch.setattr(module, "MEMORY", tmp_path)
    (tmp_path / "mmrl-of-somebody").mkdir()
    dead, alive = other(), other()
    assert len(list(tmp_path.glob("mmrl-*/*.a/*.safetensors"))) == 2
    dead.kill()
    dead.wait()
    shared = SharedFeatures()
    assert len(list(tmp_path.glob("mmrl-*/*.a/*.safetensors"))) == 1
    assert len(list(tmp_path.glob("mmrl-*"))) == 3  # somebody's, the living one's, ours
    alive.kill()
    alive.wait()
    shared.close()
    assert not shared.folder.exists()


def test_trainers_share_a_folder(tmp_path, other):
    folder = tmp_path / "shared"
    dead, _ = other(folder), other(folder)
    dead.kill()
    dead.wait()
    shared = SharedFeatures(folder)
    assert len(list(folder.glob("*.a"))) == 1
    shared.close()
    assert len(list(folder.glob("*.a"))) == 1


def test_a_full_disk_is_told_with_what_to_do(tmp_path):
    shared = SharedFeatures(tmp_path)
    (tmp_path / "a").write_text("in the way")
    with pytest.raises(MmrlError, match=r"0\.0 MiB of features cannot be written .* rollout\.folder"):
        shared.put("a", torch.zeros(1, 2))


class Counting:
    """A publisher on a real model, which counts what is asked of its cache; `refuse` makes it fail."""

    def __init__(self, checkpoint, folder):
        self.features = FeatureCache(checkpoint.model, checkpoint.family)
        self.shared = SharedFeatures(folder)
        self.batches, self.refuse = [], False
        encode = self.features.encode

        def count(media):
            media = list(media)
            self.batches.append([medium.key for medium in media])
            if self.refuse:
                raise RuntimeError("no memory")
            return encode(media)

        self.features.encode = count
        self.publisher = Publisher(self.features, self.shared)


@pytest.fixture
def counting(checkpoint, tmp_path):
    return Counting(checkpoint, tmp_path)


def test_siblings_and_other_prompts_of_a_turn_are_encoded_together_and_once(counting, picture):
    first, second = picture(0), picture(1, 84, 56)
    want = counting.features.encode([first, second])
    counting.batches.clear()

    async def show():
        one = {"a": Slice(medium=first, start=0, length=4)}
        two = {"b": Slice(medium=second, start=2, length=3)}
        publish = counting.publisher.publish
        await asyncio.gather(*(publish(one, f"0/{n}") for n in range(4)), *(publish(two, f"1/{n}") for n in range(4)))

    asyncio.run(show())
    assert counting.batches == [[first.key, second.key]]
    assert torch.equal(read(counting.shared, "a"), want[first.key])
    assert torch.equal(read(counting.shared, "b"), want[second.key][2:5])
    asyncio.run(counting.publisher.publish({"a": Slice(medium=first, start=0, length=4)}, "2/0"))
    assert len(counting.batches) == 1


def test_a_failure_costs_those_who_wait_for_it_and_is_tried_again(counting, picture):
    run = {"a": Slice(medium=picture(0), start=0, length=4)}

    async def show(count):
        publish = counting.publisher.publish
        return await asyncio.gather(*(publish(run, f"0/{n}") for n in range(count)), return_exceptions=True)

    counting.refuse = True
    assert [str(error) for error in asyncio.run(show(3))] == ["no memory"] * 3
    assert not counting.shared.holds("a")
    counting.refuse = False
    assert asyncio.run(show(2)) == [None, None]
    assert read(counting.shared, "a").shape[0] == 4


def test_one_that_fails_costs_no_other(counting, picture, monkeypatch):
    put = counting.shared.put

    def refuse(name, features):
        if name == "a":
            raise OSError("full")
        put(name, features)

    monkeypatch.setattr(counting.shared, "put", refuse)

    async def show():
        wanted = [{name: Slice(medium=picture(n), start=0, length=4)} for n, name in enumerate("abc")]
        publish = counting.publisher.publish
        return await asyncio.gather(*(publish(each, f"{n}/0") for n, each in enumerate(wanted)), return_exceptions=True)

    assert [str(outcome) for outcome in asyncio.run(show())] == ["full", "None", "None"]
    assert read(counting.shared, "b").shape[0] == 4


def test_after_a_cancelled_rollout_the_next_one_is_shown(counting, picture):
    encode, started = counting.features.encode, threading.Event()

    def slow(media):
        started.set()
        time.sleep(0.2)
        return encode(media)

    async def interrupted():
        task = asyncio.create_task(publish({"a": Slice(medium=picture(0), start=0, length=4)}, "0/0"))
        await asyncio.to_thread(started.wait)
        task.cancel()

    publish, counting.features.encode = counting.publisher.publish, slow
    asyncio.run(interrupted())
    assert not counting.shared.holds("a")
    assert not (counting.shared.folder / "a").exists()
    counting.features.encode = encode
    asyncio.run(asyncio.wait_for(publish({"a": Slice(medium=picture(0), start=0, length=4)}, "0/0"), 20))
    assert read(counting.shared, "a").shape[0] == 4


def test_a_sibling_that_is_cancelled_takes_nothing_from_the_others(counting, picture):
    async def show():
        wanted = {"a": Slice(medium=picture(0), start=0, length=4)}
        tasks = [asyncio.create_task(counting.publisher.publish(wanted, f"0/{n}")) for n in range(2)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second = asyncio.run(show())
    assert isinstance(first, asyncio.CancelledError)
    assert second is None
