"""Blocks computed together equal blocks computed one by one, in value and gradient."""

import families
import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mmrl.attention.blocks import NAME, block_attention
from mmrl.models.load import load_checkpoint
from mmrl.types import CoordinateFrame, Media


def one_by_one(query, key, value, ends, scaling):
    outputs = [
        scaled_dot_product_attention(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], scale=scaling)
        for a, b in zip(ends, ends[1:], strict=False)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2)


@pytest.mark.parametrize("lengths", [[4] * 6, [3, 5, 3, 1, 5, 5], [7], [1, 2, 3, 4]])
def test_blocks_of_any_lengths(lengths):
    torch.manual_seed(0)
    ends = [0, *np.cumsum(lengths).tolist()]
    states = [torch.randn(1, 2, ends[-1], 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weight = torch.randn(1, ends[-1], 2, 8, dtype=torch.float64)
    results = []
    for attend in (
        lambda: block_attention(None, *states, None, scaling=0.3, cu_seq_lens_q=torch.tensor(ends))[0],
        lambda: one_by_one(*states, ends, 0.3),
    ):
        output = attend()
        results.append([output, *torch.autograd.grad((output * weight).sum(), states)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen2_5_omni"])
def test_towers_give_the_same_features_and_gradients_as_transformers_own_loop(name, tmp_path):
    checkpoint = load_checkpoint(families.write(name, tmp_path / name), family=None, dtype="float32", device="cpu")
    family, model = checkpoint.family, checkpoint.model.double()
    side = 32 if name.startswith("qwen3") else 28
    rng = np.random.default_rng(0)
    media = []
    for number, (steps, w, h) in enumerate([(2, 2, 2), (3, 1, 1), (1, 3, 2)]):
        frame = CoordinateFrame(original=(w * side, h * side), seen=(w * side, h * side))
        pixels = rng.integers(0, 256, (2 * steps, h * side, w * side, 3), dtype=np.uint8)
        times = tuple(float(n) for n in range(2 * steps))
        media.append(Media(kind="video", key=str(number), data=pixels, frame=frame, times=times))
    if name == "qwen2_5_omni":
        media += [
            Media(kind="audio", key=str(seconds), data=rng.normal(0, 0.1, round(16000 * seconds)).astype(np.float32))
            for seconds in (0.5, 3.1)
        ]
    towers = family.towers(model)
    weights = [p for tower in towers for p in tower.parameters()]
    results = []
    for attention in (NAME, "sdpa"):
        for tower in towers:
            tower.config._attn_implementation = attention
        features = torch.cat(family.encode_media(model, media))
        grads = torch.autograd.grad(features.square().sum(), weights, allow_unused=True)
        results.append([features, *(grad for grad in grads if grad is not None)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * (1 + theirs.detach().abs().max().item()))
