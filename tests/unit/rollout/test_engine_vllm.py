"""vLLM's rollouts against the trainer's forward. Tiny weights of 0.08: at 0.02 even wrong positions barely show."""

import asyncio

import families
import numpy as np
import pytest
import torch

from mmrl.cache.features import FeatureCache
from mmrl.config import LoraSection
from mmrl.errors import ConfigError
from mmrl.models.load import load_checkpoint
from mmrl.protocols import Request
from mmrl.train.engine import TorchEngine
from mmrl.train.rows import build_row
from mmrl.types import CoordinateFrame, Media, Message, Part, Segment, Source, StopReason, Tokens, Trajectory

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own

ARGUMENTS = {"disable_log_stats": True, "kv_cache_memory_bytes": 1 << 28}
PLAIN = {"family": None, "dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    from mmrl.rollout.engine_vllm import VllmEngine

    path = families.write("qwen2_5_vl", tmp_path_factory.mktemp("vllm") / "model")
    checkpoint = load_checkpoint(path, **PLAIN)
    features = FeatureCache(checkpoint.model, checkpoint.family)
    return VllmEngine(
        checkpoint,
        features,
        path,
        batch_size=64,
        deterministic=True,
        max_context=2048,
        max_media=4,
        arguments=ARGUMENTS,
    )


def picture(seed, width=56, height=56):
    data = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    frame = CoordinateFrame(original=(width, height), seen=(width, height))
    return Media(kind="image", key=f"picture-{seed}", data=data, frame=frame)


def video(seed, frames):
    data = np.random.default_rng(seed).integers(0, 256, (frames, 56, 56, 3), dtype=np.uint8)
    frame = CoordinateFrame(original=(56, 56), seen=(56, 56))
    return Media(kind="video", key=f"video-{seed}", data=data, frame=frame, times=tuple(np.arange(frames) * 0.5))


def play(engine, media, later=(), siblings=3):
    """Trajectories of a prompt with `media`, and a further turn for each medium of `later`."""
    family = engine.family
    message = Message(role="user", parts=(*(Part(media=i) for i in range(len(media))), Part(text="What is this?")))
    prompt = family.encode_prompt([message], media, ())
    parts = [[Segment(source=Source.PROMPT, ids=prompt.ids, spans=prompt.spans)] for _ in range(siblings)]

    async def turn(new, shown, number):
        asked = [request(sibling, new, shown, number) for sibling in range(siblings)]
        for part, completion in zip(parts, await asyncio.gather(*map(engine.generate, asked)), strict=True):
            part.append(Segment(source=Source.MODEL, ids=completion.ids, logprobs=completion.logprobs))

    async def run():
        for sibling in range(siblings):
            engine.open(f"{sibling}")
        await turn(prompt, tuple(media), 0)
        for number, medium in enumerate(later, 1):
            seen = family.extend(Message(role="tool", parts=(Part(media=0),)), [medium], closed=True)
            for part in parts:
                part.append(Segment(source=Source.OBSERVATION, ids=seen.ids, spans=seen.spans))
            await turn(seen, (medium,), number)
        for sibling in range(siblings):
            engine.release(f"{sibling}")

    asyncio.run(run())
    shown = {medium.key: medium for medium in (*media, *later)}
    return [
        Trajectory(sample_id="s", index=0, segments=tuple(part), turns=(), stop=StopReason.ANSWERED, media=shown)
        for part in parts
    ]


def request(sibling, new: Tokens, shown, number):
    return Request(
        episode=f"{sibling}",
        group="0",
        order=(0, sibling),
        new=new,
        media=shown,
        seed=17 * sibling + number,
        max_tokens=8 + sibling,
        temperature=1.0,
    )


def gap(engine, played):
    """(mean, max) of what the two say of each token's log-prob."""
    trainer = TorchEngine(engine.checkpoint.model, engine.family, None, micro_batch_tokens=10**5, max_grad_norm=1.0)
    rows = [build_row(trajectory, engine.family) for trajectory in played]
    theirs = np.array([value for t in played for s in t.segments for value in s.logprobs])
    found = np.abs(theirs - trainer.logprobs(rows, dict(played[0].media)).numpy())
    assert len(found) > 20
    return found.mean(), found.max()


CASES = {
    "text": ((), ()),
    "image": ((picture(0),), ()),
    "images": ((picture(1, 112, 56), picture(2, 56, 84)), ()),
    "video": ((video(3, 256),), ()),
    "turns": ((picture(4),), (picture(5, 84, 56), video(6, 8))),
}


@pytest.mark.parametrize("case", CASES)
def test_log_probs_equal_the_trainers(engine, case):
    mean, largest = gap(engine, play(engine, *CASES[case]))
    assert mean <= 1e-5
    assert largest <= 1e-4


def test_positions_of_another_convention_would_show(engine, monkeypatch):
    """A long video's text stands elsewhere in the convention of transformers 5.19 and 5.20."""
    played = play(engine, *CASES["video"])
    positions = engine.family.positions

    def transformers_convention(tokens):
        found = positions(tokens).copy()
        (span,) = tokens.spans
        behind = span.start + span.length
        found[:, behind:] += span.start + max(span.grid[1:]) - found[0, behind]
        return found

    monkeypatch.setattr(engine.family, "positions", transformers_convention)
    assert gap(engine, played)[1] > 1e-2


def test_new_weights_are_taken_and_what_old_ones_computed_is_forgotten(engine):
    for step in range(10):
        with torch.no_grad():
            for number, parameter in enumerate(engine.checkpoint.model.parameters()):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * step + number))
                parameter.add_(noise, alpha=0.01)
        engine.weights_changed(vision=True)
        mean, largest = gap(engine, play(engine, *CASES["turns"]))
        assert mean <= 1e-5, step
        assert largest <= 1e-4, step


def test_a_cache_that_is_not_reset_is_noticed(engine, monkeypatch):
    """Blocks of 128 tokens are kept: the prompt must be longer."""
    play(engine, *CASES["video"])
    with torch.no_grad():
        engine.checkpoint.model.model.language_model.layers[0].self_attn.v_proj.weight.mul_(1.5)
    monkeypatch.setattr(engine.llm, "reset_prefix_cache", lambda: None)
    engine.weights_changed(vision=False)
    stale = gap(engine, play(engine, *CASES["video"]))
    monkeypatch.undo()
    engine.weights_changed(vision=False)
    assert stale[1] > 1e-3
    assert gap(engine, play(engine, *CASES["video"]))[1] <= 1e-4


def test_reserved_ids_are_never_sampled(engine):
    written = {i for t in play(engine, (), siblings=16) for s in t.segments if s.source is Source.MODEL for i in s.ids}
    assert not written & set(engine.family.reserved_ids)


def test_what_it_does_not_take_is_refused(tmp_path):
    from mmrl.rollout.engine_vllm import VllmEngine

    options = {"batch_size": 1, "deterministic": True, "max_context": 64, "max_media": 1, "arguments": {}}
    for name, lora, words in (("qwen3_vl", None, "Qwen2.5-VL so far"), ("qwen2_5_vl", LoraSection(), "model.lora")):
        path = families.write(name, tmp_path / name)
        made = load_checkpoint(path, **PLAIN, lora=lora)
        with pytest.raises(ConfigError, match=words):
            VllmEngine(made, FeatureCache(made.model, made.family), path, **options)
