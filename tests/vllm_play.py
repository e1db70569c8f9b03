"""Rollouts by vLLM, and how far its log-probs are from the trainer's.

Tiny weights of 0.08: at 0.02 even wrong positions barely show.
"""

import asyncio

import families
import numpy as np
import torch

from mmrl.cache.features import FeatureCache
from mmrl.config import EpisodeSection, RolloutSection
from mmrl.models.load import load_checkpoint
from mmrl.protocols import Request
from mmrl.train.engine import TorchEngine
from mmrl.train.rows import build_row
from mmrl.types import CoordinateFrame, Media, Message, Part, Segment, Source, StopReason, Trajectory

ARGUMENTS = {"disable_log_stats": True, "kv_cache_memory_bytes": 1 << 28}
SECTION = RolloutSection(engine="vllm", vllm=ARGUMENTS)
EPISODE = EpisodeSection(max_context=2048, max_turn_tokens=64)


def open_engine(name, place, lora=None, **rollout):
    """(checkpoint, engine) of a family's tiny checkpoint, which is written into the folder `place`."""
    from mmrl.rollout.open_vllm import open_vllm

    path = families.write(name, place / name)
    checkpoint = load_checkpoint(path, family=None, dtype="float32", device="cpu", lora=lora)
    section = RolloutSection(engine="vllm", **{"vllm": ARGUMENTS} | rollout)
    features = FeatureCache(checkpoint.model, checkpoint.family)
    logs = place / "servers"
    return checkpoint, open_vllm(checkpoint, features, path, section, EPISODE, logs=logs, tell=print)


def picture(seed, columns=2, rows=2, side=28):
    """Of columns x rows tokens, `side` pixels each."""
    width, height = columns * side, rows * side
    data = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    frame = CoordinateFrame(original=(width, height), seen=(width, height))
    return Media(kind="image", key=f"picture-{seed}", data=data, frame=frame)


def video(seed, frames, side=28):
    """At 2 frames a second, 2 x 2 tokens for two frames."""
    data = np.random.default_rng(seed).integers(0, 256, (frames, 2 * side, 2 * side, 3), dtype=np.uint8)
    frame = CoordinateFrame(original=(2 * side, 2 * side), seen=(2 * side, 2 * side))
    return Media(kind="video", key=f"video-{seed}", data=data, frame=frame, times=tuple(np.arange(frames) * 0.5))


def sound(seed, seconds):
    data = np.random.default_rng(seed).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)
    return Media(kind="audio", key=f"sound-{seed}", data=data)


def vision(side=28):
    return {
        "image": ((picture(0, side=side),), ()),
        "images": ((picture(1, 4, 2, side), picture(2, 2, 3, side)), ()),
        "video": ((video(3, 256, side),), ()),
        "turns": ((picture(4, side=side),), (picture(5, 3, 2, side), video(6, 8, side))),
    }


VISION = vision()


def change(model, seed, amount=0.01):
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(1000 * seed + number)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=amount)


def play(engine, media, later=(), siblings=3, tokens=8):
    """Trajectories of a prompt with `media`, and a further turn for each medium of `later`."""
    family = engine.family
    message = Message(role="user", parts=(*(Part(media=i) for i in range(len(media))), Part(text="What is this?")))
    prompt = family.encode_prompt([message], media, ())
    parts = [[Segment(source=Source.PROMPT, ids=prompt.ids, spans=prompt.spans)] for _ in range(siblings)]

    async def run(sibling, part):
        part.append(await ask(engine, sibling, 0, prompt, tuple(media), tokens))
        for turn, medium in enumerate(later, 1):
            seen = family.extend(Message(role="tool", parts=(Part(media=0),)), [medium], closed=True)
            part.append(Segment(source=Source.OBSERVATION, ids=seen.ids, spans=seen.spans))
            part.append(await ask(engine, sibling, turn, seen, (medium,), tokens))
        engine.release(f"0/{sibling}")

    async def run_all():
        for sibling in range(siblings):
            engine.open(f"0/{sibling}", "0")
        await asyncio.gather(*(run(sibling, part) for sibling, part in enumerate(parts)))

    asyncio.run(run_all())
    shown = {medium.key: medium for medium in (*media, *later)}
    return [
        Trajectory(sample_id="s", index=0, segments=tuple(part), turns=(), stop=StopReason.ANSWERED, media=shown)
        for part in parts
    ]


async def ask(engine, sibling, turn, new, media, tokens, group="0"):
    request = Request(
        episode=f"{group}/{sibling}",
        group=group,
        order=(int(group), sibling),
        new=new,
        media=media,
        seed=17 * sibling + turn,
        max_tokens=tokens + sibling,
        temperature=1.0,
    )
    completion = await engine.generate(request)
    assert completion.version == engine.version
    return Segment(source=Source.MODEL, ids=completion.ids, logprobs=completion.logprobs)


def gap(checkpoint, played):
    """(mean, max) of what the two say of each token's log-prob."""
    trainer = TorchEngine(checkpoint.model, checkpoint.family, None, micro_batch_tokens=10**5, max_grad_norm=1.0)
    rows = [build_row(trajectory, checkpoint.family) for trajectory in played]
    theirs = np.array([value for t in played for s in t.segments for value in s.logprobs])
    found = np.abs(theirs - trainer.logprobs(rows, dict(played[0].media)).numpy())
    assert len(found) > 20
    return found.mean(), found.max()


def assert_equal(checkpoint, played, what=""):
    mean, largest = gap(checkpoint, played)
    assert mean <= 1e-5, what
    assert largest <= 1e-4, what
