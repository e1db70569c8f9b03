"""The engine against the trainer's plain forward and transformers' own generate."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmrl.cache.features import FeatureCache
from mmrl.models.text import control_id
from mmrl.protocols import Request
from mmrl.rollout.engine_hf import HFEngine
from mmrl.rollout.seeds import derive_seed
from mmrl.rollout.writer import sample
from mmrl.train.engine import TorchEngine
from mmrl.train.rows import build_row
from mmrl.types import Message, Part, Segment, Source, StopReason, Tokens, Trajectory


@pytest.fixture
def engine(checkpoint):
    features = FeatureCache(checkpoint.model, checkpoint.family)
    return HFEngine(checkpoint.model, checkpoint.family, features, batch_size=64, deterministic=True)


@pytest.fixture
def prompts(checkpoint, picture):
    """Three prompts of different length, the first two with a picture."""
    media = [(picture(0),), (picture(1, 112, 56),), ()]
    texts = ["Which digit is in the red frame?", "7", "Which digit is it? " * 3]
    encoded = []
    for shown, text in zip(media, texts, strict=True):
        parts = (*(Part(media=number) for number in range(len(shown))), Part(text=text))
        encoded.append((checkpoint.family.encode_prompt([Message(role="user", parts=parts)], shown, ()), shown))
    return encoded


def request(row, sibling, tokens, media=(), *, turn=0, max_tokens=8, temperature=1.0):
    return Request(
        episode=f"{row}/{sibling}",
        group=str(row),
        order=(row, sibling),
        new=tokens,
        media=media,
        seed=derive_seed(0, row, sibling, turn),
        max_tokens=max_tokens,
        temperature=temperature,
    )


def ask(engine, requests):
    """All answered, opened first where they are new."""

    async def run():
        for r in requests:
            if r.episode not in engine._episodes:
                engine.open(r.episode, r.group)
        return await asyncio.gather(*(engine.generate(r) for r in requests))

    return asyncio.run(run())


def close(engine):
    for name in list(engine._episodes):
        engine.release(name)


def two_turns(engine, prompts, checkpoint, picture, siblings=3, **options):
    """(completions of turn 1, of turn 2, the tokens between them) for every prompt and sibling."""
    crop = picture(9)
    between = checkpoint.family.extend(Message(role="tool", parts=(Part(media=0),)), [crop], closed=True)
    keys = [(row, sibling) for row in range(len(prompts)) for sibling in range(siblings)]
    first = ask(engine, [request(r, s, *prompts[r], max_tokens=4 + 3 * s, **options) for r, s in keys])
    second = ask(engine, [request(r, s, between, (crop,), turn=1, **options) for r, s in keys])
    close(engine)
    return keys, first, second, (between, crop)


def trajectory(prompt, media, first, between, crop, second):
    segments = (
        Segment(source=Source.PROMPT, ids=prompt.ids, spans=prompt.spans),
        Segment(source=Source.MODEL, ids=first.ids, logprobs=first.logprobs),
        Segment(source=Source.OBSERVATION, ids=between.ids, spans=between.spans),
        Segment(source=Source.MODEL, ids=second.ids, logprobs=second.logprobs),
    )
    shown = {medium.key: medium for medium in (*media, crop)}
    return Trajectory(sample_id="s", index=0, segments=segments, turns=(), stop=StopReason.ANSWERED, media=shown)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_of_several_turns_equal_the_trainers(engine, checkpoint, prompts, picture, temperature):
    keys, first, second, (between, crop) = two_turns(engine, prompts, checkpoint, picture, temperature=temperature)
    played = [
        trajectory(*prompts[row], one, between, crop, two)
        for (row, _), one, two in zip(keys, first, second, strict=True)
    ]
    trainer = TorchEngine(checkpoint.model, checkpoint.family, None, micro_batch_tokens=300, max_grad_norm=1.0)
    trainer.temperature = temperature
    media = {key: medium for t in played for key, medium in t.media.items()}
    theirs = trainer.logprobs([build_row(t, checkpoint.family) for t in played], media).numpy()
    ours = np.concatenate([np.array(lp) for t in played for lp in (t.segments[1].logprobs, t.segments[3].logprobs)])
    assert len(ours) > 40
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_a_batch_samples_what_each_row_samples_alone(engine, checkpoint, prompts, picture):
    keys, first, second, _ = two_turns(engine, prompts, checkpoint, picture)
    engine.batch_size = 1
    _, first_alone, second_alone, _ = two_turns(engine, prompts, checkpoint, picture)
    assert [c.ids for c in (*first, *second)] == [c.ids for c in (*first_alone, *second_alone)]


def test_siblings_of_a_prompt_share_one_prefill_and_each_image_is_encoded_once(
    engine, checkpoint, prompts, monkeypatch
):
    shapes, encoded = [], []
    family = checkpoint.family
    forward, encode = family.hidden_states, family.encode_media

    def counted(model, inputs, *rest, **attention):
        shapes.append(tuple(inputs.embeds_BTD.shape[:2]))
        return forward(model, inputs, *rest, **attention)

    monkeypatch.setattr(family, "hidden_states", counted)
    monkeypatch.setattr(checkpoint.family, "encode_media", lambda model, m: encoded.extend(m) or encode(model, m))
    ask(engine, [request(row, sibling, *prompts[row], max_tokens=2) for row in range(3) for sibling in range(5)])
    close(engine)
    assert shapes == [(1, sum(len(tokens.ids) for tokens, _ in prompts)), (15, 1)]
    assert len(encoded) == 2


def test_greedy_decoding_equals_transformers_generate(engine, checkpoint, prompts):
    tokens, media = prompts[1]
    ours = ask(engine, [request(0, 0, tokens, media, max_tokens=12, temperature=0.0)])[0]
    close(engine)
    family, ids = checkpoint.family, torch.tensor([tokens.ids])
    out = checkpoint.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=family.patching.rows(media[0]),
        image_grid_thw=torch.tensor([(1, 4, 8)]),
        mm_token_type_ids=(ids == control_id(family.tokenizer, "<|image_pad|>")).int(),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=list(family.eos_ids),
        suppress_tokens=list(family.reserved_ids),
    )
    assert list(ours.ids) == out[0, len(tokens.ids) :].tolist()


def test_rows_of_one_batch_keep_their_own_temperature(engine, checkpoint, prompts):
    """Tokens and log-probs are those that a batch of one temperature gives; greedy rows stand beside sampled ones."""
    temperatures = (0.0, 0.8, 1.0, 1.7)
    alone = {}
    for temperature in temperatures:
        keys = [(row, sibling) for row in range(3) for sibling in range(4)]
        answers = ask(engine, [request(r, s, *prompts[r], max_tokens=12, temperature=temperature) for r, s in keys])
        close(engine)
        alone |= {(temperature, *key): answer for key, answer in zip(keys, answers, strict=True)}
    keys = [(row, sibling) for row in range(3) for sibling in range(4)]
    mixed = ask(engine, [request(r, s, *prompts[r], max_tokens=12, temperature=temperatures[s]) for r, s in keys])
    close(engine)
    for (row, sibling), answer in zip(keys, mixed, strict=True):
        expected = alone[temperatures[sibling], row, sibling]
        assert answer.ids == expected.ids
        np.testing.assert_allclose(answer.logprobs, expected.logprobs, rtol=0, atol=1e-5)
    assert len({answer.ids for answer in mixed}) > 6


def test_a_wave_waits_until_every_open_episode_asks(engine, prompts):
    """Batches then depend on the rows alone, not on which episode was quicker."""

    async def run():
        for name in ("0/0", "1/0"):
            engine.open(name, "0")
        first = asyncio.create_task(engine.generate(request(0, 0, *prompts[0])))
        for _ in range(5):
            await asyncio.sleep(0)
        before = first.done()
        engine.release("1/0")
        await first
        engine.release("0/0")
        return before

    assert asyncio.run(run()) is False


def test_a_failed_batch_fails_its_requests_and_no_others(engine, prompts):
    tokens, media = prompts[1]
    broken = Tokens(ids=tokens.ids, spans=tokens.spans)

    async def run():
        engine.batch_size = 1
        for name in ("0/0", "1/0"):
            engine.open(name, "0")
        asked = (engine.generate(request(0, 0, broken, ())), engine.generate(request(1, 0, tokens, media)))
        return await asyncio.gather(*asked, return_exceptions=True)

    failed, answered = asyncio.run(run())
    close(engine)
    assert isinstance(failed, KeyError)  # its medium was never sent
    assert len(answered.ids) > 0


def test_weights_may_not_change_while_an_episode_is_open(engine):
    engine.open("0/0", "0")
    with pytest.raises(AssertionError, match="between episodes"):
        engine.weights_changed(vision=True)
    close(engine)


def test_features_of_trained_vision_are_forgotten(engine, prompts, checkpoint):
    ask(engine, [request(0, 0, *prompts[0], max_tokens=1)])
    close(engine)
    assert engine.features._features
    engine.weights_changed(vision=False)
    assert engine.features._features
    engine.weights_changed(vision=True)
    assert not engine.features._features
    assert engine.version == 2


def test_sampling_follows_the_distribution_and_never_takes_a_suppressed_id():
    logprobs = torch.log(torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]])).expand(20_000, -1)
    uniform = torch.from_numpy(np.random.default_rng(0).random(20_000))
    counts = sample(logprobs, uniform).bincount(minlength=6) / 20_000
    torch.testing.assert_close(counts, torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0]), rtol=0, atol=0.015)
    edges = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert sample(logprobs[:2], edges).tolist() == [1, 4]


def test_reserved_ids_are_never_sampled(engine, checkpoint, prompts):
    asked = [request(2, sibling, *prompts[2], max_tokens=40, temperature=5.0) for sibling in range(8)]
    completions = ask(engine, asked)
    close(engine)
    sampled = {token for completion in completions for token in completion.ids}
    assert len(sampled) > 100
    assert not sampled & set(checkpoint.family.reserved_ids)


def test_batches_do_not_cut_a_group_that_fits(engine, prompts, checkpoint, monkeypatch):
    computed = []
    forward = checkpoint.family.hidden_states

    def counted(model, inputs, *rest, **attention):
        if "tree" in attention:
            computed.extend(attention["tree"].parts)
        return forward(model, inputs, *rest, **attention)

    monkeypatch.setattr(checkpoint.family, "hidden_states", counted)
    engine.batch_size = 6
    ask(engine, [request(row, sibling, *prompts[row], max_tokens=2) for row in range(3) for sibling in range(4)])
    close(engine)
    assert len(computed) == 3


def test_a_name_does_not_make_two_prompts_one(engine, prompts):
    requests = [request(row, 0, *prompts[row], max_tokens=6, temperature=0.0) for row in range(3)]
    alone = [completion.ids for completion in ask(engine, requests)]
    close(engine)
    same = [replace(made, group="0") for made in requests]
    assert [completion.ids for completion in ask(engine, same)] == alone
    close(engine)
