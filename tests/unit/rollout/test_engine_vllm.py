"""vLLM's rollouts in this process against the trainer's forward."""

import asyncio

import numpy as np
import pytest
import torch
from vllm_play import VISION, ask, assert_equal, change, gap, open_engine, picture, play, video

from mmrl.errors import ConfigError
from mmrl.rollout import vllm_inprocess
from mmrl.rollout.vllm_prompt import sampling
from mmrl.types import Source, Tokens

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    checkpoint, engine = open_engine("qwen2_5_vl", tmp_path_factory.mktemp("vllm"))
    yield checkpoint, engine
    engine.close()


def test_positions_of_another_convention_would_show(opened, monkeypatch):
    """A long video's text stands elsewhere in the convention of transformers 5.19 and 5.20."""
    checkpoint, engine = opened
    played = play(engine, *VISION["video"])
    positions = checkpoint.family.positions

    def transformers_convention(tokens):
        found = positions(tokens).copy()
        (span,) = tokens.spans
        behind = span.start + span.length
        found[:, behind:] += span.start + max(span.grid[1:]) - found[0, behind]
        return found

    monkeypatch.setattr(checkpoint.family, "positions", transformers_convention)
    assert gap(checkpoint, played)[1] > 1e-2


def test_new_weights_are_taken_and_what_old_ones_computed_is_forgotten(opened):
    checkpoint, engine = opened
    for step in range(10):
        change(checkpoint.model, step)
        engine.weights_changed(vision=True)
        assert_equal(checkpoint, play(engine, *VISION["turns"]), step)


def test_a_cache_that_is_not_reset_is_noticed(opened, monkeypatch):
    """Blocks of 128 tokens are kept: the prompt must be longer."""
    checkpoint, engine = opened
    play(engine, *VISION["video"])
    with torch.no_grad():
        checkpoint.model.model.language_model.layers[0].self_attn.v_proj.weight.mul_(1.5)
    monkeypatch.setattr(engine.backend.llm, "reset_prefix_cache", lambda: True)
    engine.weights_changed(vision=False)
    stale = gap(checkpoint, play(engine, *VISION["video"]))
    monkeypatch.undo()
    engine.weights_changed(vision=False)
    assert stale[1] > 1e-3
    assert_equal(checkpoint, play(engine, *VISION["video"]))


def test_features_that_changed_under_one_name_are_noticed(opened, monkeypatch):
    """A trained tower gives other features: without a new name vLLM goes on with the first ones."""
    checkpoint, engine = opened
    play(engine, *VISION["video"])
    with torch.no_grad():
        checkpoint.model.model.visual.patch_embed.proj.weight.mul_(2.0)
    engine.weights_changed(vision=True)
    monkeypatch.setattr(engine.backend.llm, "reset_prefix_cache", lambda: True)
    monkeypatch.setattr(engine, "_vision", engine._vision - 1)
    stale = gap(checkpoint, play(engine, *VISION["video"]))
    monkeypatch.undo()
    engine.weights_changed(vision=False)
    assert stale[1] > 1e-3
    assert_equal(checkpoint, play(engine, *VISION["video"]))


def test_media_are_written_once_for_a_group_of_any_size(opened):
    _, engine = opened
    written = []
    for siblings in (1, 8):
        before = engine.shared.bytes_written
        play(engine, (picture(20 + siblings), video(30, 16)), (picture(40),), siblings=siblings)
        written.append(engine.shared.bytes_written - before)
        assert not [path for path in engine.shared.folder.iterdir() if path.is_dir()]
    assert written[0] == written[1] > 0


def test_a_later_turn_finds_the_keys_of_the_earlier_ones(opened, monkeypatch):
    _, engine = opened
    engine.weights_changed(vision=False)
    play(engine, *VISION["video"], siblings=1)
    found = []
    completion = engine.backend._completion
    monkeypatch.setattr(
        engine.backend, "_completion", lambda call, out: found.append(out.num_cached_tokens) or completion(call, out)
    )
    play(engine, (video(3, 256),), (picture(50),), siblings=4)
    assert sum(found) >= 8 * 512


def test_reserved_ids_are_never_sampled(opened):
    checkpoint, engine = opened
    played = play(engine, (), siblings=16, tokens=24)
    written = {i for t in played for s in t.segments if s.source is Source.MODEL for i in s.ids}
    assert len(written) > 50
    assert not written & set(checkpoint.family.reserved_ids)


def test_more_prompts_than_a_batch_takes_are_all_answered(opened):
    checkpoint, engine = opened
    rng = np.random.default_rng(0)
    prompts = [Tokens(ids=tuple(rng.integers(0, 200, 900).tolist())) for _ in range(24)]

    async def ask_all():
        for sibling in range(24):
            engine.open(f"0/{sibling}", "0")
        return await asyncio.gather(*(ask(engine, n, 0, prompt, (), 2) for n, prompt in enumerate(prompts)))

    segments = asyncio.run(ask_all())
    for sibling in range(24):
        engine.release(f"0/{sibling}")
    assert all(segment.ids for segment in segments)


def test_a_request_that_cannot_be_met_costs_its_episode_only(opened):
    checkpoint, engine = opened
    engine.open("too long", "1")
    long = checkpoint.family.encode_text("word " * 3000)

    async def ask_both():
        engine.open("0/0", "0")
        bad = ask_as("too long", Tokens(ids=long))
        good = ask(engine, 0, 0, Tokens(ids=long[:9]), (), 4)
        return await asyncio.gather(engine.generate(bad), good, return_exceptions=True)

    error, segment = asyncio.run(ask_both())
    engine.release("too long")
    engine.release("0/0")
    assert "longer than the maximum model length" in str(error)
    assert len(segment.ids) == 4


def ask_as(episode, new):
    from mmrl.protocols import Request

    return Request(episode=episode, group="1", order=(1, 0), new=new, media=(), seed=0, max_tokens=4, temperature=1.0)


def test_a_failing_step_costs_what_was_being_written_and_nothing_later(opened, monkeypatch):
    checkpoint, engine = opened
    core, step = engine.backend.llm.llm_engine, engine.backend.llm.llm_engine.step

    def fail():
        monkeypatch.setattr(core, "step", step)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(core, "step", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        play(engine, *VISION["image"])
    release_all(engine)
    assert_equal(checkpoint, play(engine, *VISION["image"]))


def test_an_answer_that_cannot_be_used_is_an_error(opened, monkeypatch):
    checkpoint, engine = opened
    monkeypatch.setattr(vllm_inprocess, "sampling", lambda call: sampling(call) | {"logprobs": None})
    with pytest.raises(TypeError):
        play(engine, *VISION["image"])
    release_all(engine)
    monkeypatch.undo()
    assert_equal(checkpoint, play(engine, *VISION["image"]))


def test_keys_that_cannot_be_forgotten_are_an_error(opened, monkeypatch):
    _, engine = opened
    monkeypatch.setattr(engine.backend.llm, "reset_prefix_cache", lambda: False)
    engine.weights_changed(vision=False)
    with pytest.raises(RuntimeError, match="keys of other weights"):
        play(engine, ())


def test_weights_that_are_not_all_are_an_error(opened, monkeypatch):
    checkpoint, engine = opened
    weights = dict(engine.weights())
    del weights["model.layers.0.mlp.down_proj.weight"]
    monkeypatch.setattr(engine, "weights", lambda: iter(weights.items()))
    engine.weights_changed(vision=False)
    with pytest.raises(RuntimeError, match="no weights for language_model.model.layers.0.mlp.down_proj.weight"):
        play(engine, ())
    monkeypatch.undo()
    assert_equal(checkpoint, play(engine, *VISION["image"]))


def release_all(engine):
    for sibling in range(3):
        engine.release(f"0/{sibling}")


def test_what_it_does_not_take_is_refused(tmp_path):
    for name, further, words in (
        ("qwen3_5", {}, r"Qwen3\.5 so far"),
        ("qwen2_5_vl", {"max_num_batched_tokens": 1024}, "encoder cache"),
        ("qwen2_5_vl", {"tensor_parallel_size": 2}, r"rollout\.servers"),
        ("qwen2_5_vl", {"max_num_seq": 1}, "did you mean 'max_num_seqs'"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_engine(name, tmp_path, vllm=further)
