"""Features that other processes read: written once for all who show them, there as long as an episode is open."""

import asyncio
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from mmrl.cache import shared as module
from mmrl.cache.features import FeatureCache
from mmrl.cache.shared import Publisher, Run, SharedFeatures


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
    assert files(shared) == []


def test_closing_leaves_what_others_wrote_into_a_given_folder(tmp_path):
    (tmp_path / "mine").write_text("x")
    shared = SharedFeatures(tmp_path)
    shared.put("a", torch.zeros(1, 2))
    shared.hold("a", "0/0")
    shared.close()
    assert files(shared) == ["mine"]


def test_an_own_folder_is_removed_by_close_and_those_of_killed_processes_by_the_next(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "MEMORY", tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f"mmrl-{ended.pid}-x" / "a").mkdir(parents=True)
    (tmp_path / "mmrl-of-somebody").mkdir()
    shared = SharedFeatures()
    assert [path.name for path in tmp_path.iterdir() if "mmrl-" in path.name and path != shared.folder] == [
        "mmrl-of-somebody"
    ]
    shared.close()
    assert not shared.folder.exists()


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
        one = {"a": Run(medium=first, start=0, length=4)}
        two = {"b": Run(medium=second, start=2, length=3)}
        publish = counting.publisher.publish
        await asyncio.gather(*(publish(one, f"0/{n}") for n in range(4)), *(publish(two, f"1/{n}") for n in range(4)))

    asyncio.run(show())
    assert counting.batches == [[first.key, second.key]]
    assert torch.equal(read(counting.shared, "a"), want[first.key])
    assert torch.equal(read(counting.shared, "b"), want[second.key][2:5])
    asyncio.run(counting.publisher.publish({"a": Run(medium=first, start=0, length=4)}, "2/0"))
    assert len(counting.batches) == 1


def test_a_failure_costs_those_who_wait_for_it_and_is_tried_again(counting, picture):
    run = {"a": Run(medium=picture(0), start=0, length=4)}

    async def show(count):
        publish = counting.publisher.publish
        return await asyncio.gather(*(publish(run, f"0/{n}") for n in range(count)), return_exceptions=True)

    counting.refuse = True
    assert [str(error) for error in asyncio.run(show(3))] == ["no memory"] * 3
    assert not counting.shared.holds("a")
    counting.refuse = False
    assert asyncio.run(show(2)) == [None, None]
    assert read(counting.shared, "a").shape[0] == 4
