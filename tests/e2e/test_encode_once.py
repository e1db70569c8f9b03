"""Whole runs: a medium goes through the vision tower once for every version of its weights."""

import pytest

from mmrl.models.qwen2_vl import Qwen25VL
from mmrl.rollout.engine_hf import HFEngine
from mmrl.train.run import train

CHANGED = "the weights changed"
SHORT = ("stages.0.steps=2", "stages.1.kl_beta=0", "evaluate.limit=4")
FROZEN = ("stages.0.freeze=['model.visual.*']", "stages.1.freeze=['model.visual.*']")


@pytest.fixture
def calls(monkeypatch):
    """Keys of all media that go through a tower, in order, and every change of the weights."""
    log = []
    encode, changed = Qwen25VL.encode_media, HFEngine.weights_changed

    def encode_and_log(self, model, media):
        log.extend(medium.key for medium in media)
        return encode(self, model, media)

    def change_and_log(self, *, vision):
        log.append(CHANGED)
        changed(self, vision=vision)

    monkeypatch.setattr(Qwen25VL, "encode_media", encode_and_log)
    monkeypatch.setattr(HFEngine, "weights_changed", change_and_log)
    return log


def versions(log):
    parts = [[]]
    for entry in log:
        if entry == CHANGED:
            parts.append([])
        else:
            parts[-1].append(entry)
    return parts


def test_a_trained_tower_sees_a_medium_once_a_step_for_rollouts_and_update(load, calls):
    train(load("name=once_trained", *SHORT))
    parts = versions(calls)
    assert len(parts) == 1 + 2 + 4
    assert all(parts[:-1])
    assert all(len(part) == len(set(part)) for part in parts)


def test_several_updates_of_a_batch_encode_once_for_each(load, calls):
    """An update changes the tower: what the next one trains on is encoded anew, and nothing else."""
    train(load("name=once_several", *SHORT, "stages.1.minibatches=2", "stages.1.steps=1", "stages.1.validation=null"))
    step = versions(calls)[-2]
    assert len(set(step)) < len(step) < 2 * len(set(step))


def test_a_frozen_tower_sees_a_medium_once_a_run(load, calls):
    train(load("name=once_frozen", *SHORT, *FROZEN))
    seen = [entry for entry in calls if entry != CHANGED]
    assert len(seen) == len(set(seen)) > 0


def test_the_second_epoch_and_the_second_run_with_a_frozen_tower_make_no_call(load, calls, tmp_path):
    settings = ("episode.tools=[]", "stages.0.steps=0", "stages.1.steps=8", "stages.1.validation=null", "evaluate=null")
    once = (*SHORT[1:2], *FROZEN, *settings, f"cache.folder={tmp_path}")
    train(load("name=once_epochs", *once))
    parts = versions(calls)
    assert len(set().union(*parts[:4])) == 16
    assert not any(parts[4:])
    calls.clear()
    train(load("name=once_again", *once))
    assert not any(versions(calls))
