"""Packed rows against rows computed one by one, in float64: log-probs and the gradient of every parameter."""

import types
from dataclasses import replace

import families
import numpy as np
import pytest
import torch

from mmrl.config import OptimizerSection
from mmrl.models.load import load_checkpoint
from mmrl.protocols import LossTerms
from mmrl.train.engine import TorchEngine
from mmrl.train.optim import build_optimizer, select_parameters
from mmrl.train.packing import plan
from mmrl.train.rows import build_row
from mmrl.types import CoordinateFrame, Media, Message, Part, Segment, Source, StopReason, Tokens, Trajectory

SHARING = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_5_omni"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """loaded(name): the family's model in float64 throughout, and the family."""
    root, found = tmp_path_factory.mktemp("families"), {}

    def load(name):
        if name not in found:
            path = families.write(name, root / name)
            made = load_checkpoint(path, family=None, dtype="float32", device="cpu")
            found[name] = in_float64(made.model), made.family
        return found[name]

    return load


def in_float64(model):
    """transformers' norms round to float32 inside, which would hide errors of that size."""

    def norm(self, hidden):
        eps = getattr(self, "variance_epsilon", None) or self.eps
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + eps)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(norm, module)
    return model.double()


class Writer:
    """Trajectories of random tokens, media among them."""

    def __init__(self, family, seed=0):
        self.family, self.rng, self.media = family, np.random.default_rng(seed), {}
        self.side = family.patching.patch * family.patching.merge

    def text(self, length):
        return Tokens(ids=tuple(self.rng.integers(0, 200, length).tolist()))

    def medium(self, kind, width=3, height=2, frames=1):
        size = (width * self.side, height * self.side)
        shape = (size[1], size[0], 3) if kind == "image" else (frames, size[1], size[0], 3)
        data = self.rng.integers(0, 256, shape, dtype=np.uint8)
        key = f"{kind}{len(self.media)}"
        frame = CoordinateFrame(original=size, seen=size)
        made = Media(kind=kind, key=key, data=data, frame=frame, times=tuple(np.arange(frames) * 0.5))
        self.media[key] = made
        return made

    def shown(self, medium):
        """A medium between words, as the family writes it."""
        return self.family.extend(message(medium), [medium], closed=False)

    def trajectory(self, *parts):
        """Parts: Tokens of the prompt or an observation, or a number of tokens that the model writes."""
        segments = []
        for part in parts:
            if isinstance(part, int):
                segments.append(Segment(source=Source.MODEL, ids=self.text(part).ids))
            elif isinstance(part, Segment):
                segments.append(part)
            else:
                segments.append(Segment(source=Source.PROMPT, ids=part.ids, spans=part.spans))
        return Trajectory(sample_id="s", index=0, segments=tuple(segments), turns=(), stop=StopReason.ANSWERED)


def message(medium):
    return Message(role="user", parts=(Part(text="See "), Part(media=0), Part(text=" here.")))


def single_image(w):
    prompt = w.shown(w.medium("image"))
    return [w.trajectory(prompt, n) for n in (5, 1, 12, 7)]


def several_images(w):
    prompts = [joined(w.shown(w.medium("image", 2 + n, 2)), w.shown(w.medium("image"))) for n in range(2)]
    return [w.trajectory(prompt, n) for n in (3, 9, 4) for prompt in prompts]


def long_video(w):
    prompt = w.shown(w.medium("video", 2, 2, frames=64))
    return [w.trajectory(prompt, n) for n in (6, 11, 2)]


def tool_turns(w):
    """Siblings whose later turns hold media of their own, two of them the same; two share a first turn."""
    prompt, crops = w.shown(w.medium("image")), [w.shown(w.medium("image", 2, 2)) for _ in range(2)]
    turn = Segment(source=Source.MODEL, ids=w.text(10).ids)
    return [
        w.trajectory(prompt, turn, crops[0], 5),
        w.trajectory(prompt, turn, crops[0], 8, crops[1], 3),
        w.trajectory(prompt, turn, crops[1], 4),
        w.trajectory(prompt, 6, crops[0], 4),
        w.trajectory(prompt, 9),
    ]


def packed_groups(w):
    return [*single_image(w), *tool_turns(w), w.trajectory(w.text(20), 6), w.trajectory(w.text(3), 2)]


def joined(a, b):
    moved = tuple(replace(span, start=span.start + len(a.ids)) for span in b.spans)
    return Tokens(ids=a.ids + b.ids, spans=a.spans + moved)


CASES = [single_image, several_images, long_video, tool_turns, packed_groups]


def rows_of(case, family):
    writer = Writer(family)
    rows = [build_row(trajectory, family) for trajectory in case(writer)]
    return rows, writer.media


def engine_of(model, family, *, sharing, tokens):
    optimizer = build_optimizer(select_parameters(model, ["*"], []), OptimizerSection(lr={"start": 0.0}))
    return TorchEngine(model, family, optimizer, micro_batch_tokens=tokens, max_grad_norm=1e9, sharing=sharing)


def measured(engine, rows, media):
    """(log-probs, entropies, gradients) of a loss that weighs every target and entropy differently."""
    seen = {}
    count = sum(len(row.target_N) for row in rows)
    weights = torch.randn(2, count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(inputs):
        for index, *values in zip(inputs.index_N.tolist(), inputs.logprobs_N, inputs.entropies_N, strict=True):
            seen[index] = torch.stack(values)
        return LossTerms(value=0.0, d_logprobs_N=weights[0][inputs.index_N], d_entropies_N=weights[1][inputs.index_N])

    engine.update(rows, media, loss)
    assert sorted(seen) == list(range(count))
    gradients = {name: p.grad.clone() for name, p in engine.model.named_parameters() if p.grad is not None}
    return torch.stack([seen[index] for index in range(count)]), gradients


def assert_equal(ours, theirs, tolerance):
    values, gradients = ours
    expected, expected_gradients = theirs
    assert (values - expected).abs().max() <= tolerance * expected.abs().max()
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        scale = expected_gradients[name].abs().max()
        assert (gradient - expected_gradients[name]).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("name", SHARING)
def test_packed_rows_equal_rows_computed_one_by_one(name, case, loaded):
    model, family = loaded(name)
    rows, media = rows_of(case, family)
    alone = measured(engine_of(model, family, sharing=False, tokens=1), rows, media)
    assert any("visual" in parameter for parameter in alone[1])
    shared = engine_of(model, family, sharing=True, tokens=10**6)
    assert all(batch.packed for batch in plan(rows, 10**6, sharing=True))
    assert_equal(measured(shared, rows, media), alone, 1e-10)


@pytest.mark.parametrize("tokens", [10**6, 80])
@pytest.mark.parametrize("name", SHARING)
def test_activation_checkpointing_and_small_batches_change_nothing(name, tokens, loaded):
    model, family = loaded(name)
    rows, media = rows_of(packed_groups, family)
    alone = measured(engine_of(model, family, sharing=False, tokens=1), rows, media)
    text = family.text_model(model)
    text.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        ours = measured(engine_of(model, family, sharing=True, tokens=tokens), rows, media)
    finally:
        text.gradient_checkpointing_disable()
    assert_equal(ours, alone, 1e-10)


def test_audio_prompts_are_shared_too(tmp_path):
    path = families.write("qwen2_audio", tmp_path / "model")
    made = load_checkpoint(path, family=None, dtype="float32", device="cpu")
    model, family = in_float64(made.model), made.family
    rng = np.random.default_rng(0)
    sound = Media(kind="audio", key="a", data=rng.standard_normal(16_000).astype(np.float32))
    prompt = family.extend(message(sound), [sound], closed=False)
    ids = [tuple(rng.integers(0, 200, n).tolist()) for n in (4, 9, 2)]
    rows = [
        build_row(
            Trajectory(
                sample_id="s",
                index=0,
                segments=(
                    Segment(source=Source.PROMPT, ids=prompt.ids, spans=prompt.spans),
                    Segment(source=Source.MODEL, ids=written),
                ),
                turns=(),
                stop=StopReason.ANSWERED,
            ),
            family,
        )
        for written in ids
    ]
    alone = measured(engine_of(model, family, sharing=False, tokens=1), rows, {"a": sound})
    assert_equal(measured(engine_of(model, family, sharing=True, tokens=10**6), rows, {"a": sound}), alone, 1e-10)


def test_float32_as_transformers_computes_it(tmp_path):
    """With transformers' own norms, rounded to float32 inside."""
    path = families.write("qwen2_5_vl", tmp_path / "model")
    made = load_checkpoint(path, family=None, dtype="float32", device="cpu")
    model, family = made.model.double(), made.family
    rows, media = rows_of(packed_groups, family)
    alone = measured(engine_of(model, family, sharing=False, tokens=1), rows, media)
    assert_equal(measured(engine_of(model, family, sharing=True, tokens=10**6), rows, media), alone, 1e-6)


def test_no_form_of_a_step_drops_attention_out(loaded):
    """A policy is trained as it was sampled, whatever its configuration says."""
    model, family = loaded("qwen2_5_vl")
    rows, media = rows_of(single_image, family)
    layers = family.text_model(model).layers
    for layer in layers:
        layer.self_attn.attention_dropout = 0.3
    try:
        alone = measured(engine_of(model, family, sharing=False, tokens=1), rows, media)
        assert_equal(measured(engine_of(model, family, sharing=True, tokens=10**6), rows, media), alone, 1e-10)
    finally:
        for layer in layers:
            layer.self_attn.attention_dropout = 0.0
