"""Rows that share prompts against every row with the keys of its prompt copied before its own."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mmrl.attention import kernels
from mmrl.attention.kernels import masked_forward
from mmrl.attention.prefix import Prefix, SharedPrefixes, prefix_attention

HEADS, GROUPS, WIDTH, LAYERS = 4, 2, 8, 2


def made(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def prefix(length):
    return Prefix(layers=tuple((made(GROUPS, length, WIDTH), made(GROUPS, length, WIDTH)) for _ in range(LAYERS)))


def copied(query, key, value, mask, prefixes, owners, layer):
    """Row by row, over [prompt, own]."""
    rows = []
    for row, owner in enumerate(owners):
        keys, values = (
            torch.cat([shared, own[row]], dim=1).repeat_interleave(HEADS // GROUPS, dim=0)
            for shared, own in zip(prefixes[owner].layers[layer], (key, value), strict=True)
        )
        seen = torch.cat([torch.ones(mask.shape[2], prefixes[owner].length, dtype=torch.bool), mask[row, 0]], dim=1)
        rows.append(scaled_dot_product_attention(query[row], keys, values, attn_mask=seen, scale=0.3))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("lengths", "owners"),
    [
        ([9], [0, 0, 0]),
        ([5, 5, 5], [0, 0, 1, 1, 2, 2]),
        ([5, 7, 5, 1], [2, 0, 3, 0, 1, 0, 2]),
        ([40_000, 3], [1, 0, 0, 1]),
    ],
    ids=["one group", "equal groups", "ragged groups", "a prompt too long to copy"],
)
@pytest.mark.parametrize("new", [1, 3])
def test_rows_see_their_own_prompt_and_their_own_keys(lengths, owners, new):
    torch.manual_seed(0)
    prefixes = [prefix(length) for length in lengths]
    rows, own = len(owners), 4 + new
    query, key, value = made(rows, HEADS, new, WIDTH), made(rows, GROUPS, own, WIDTH), made(rows, GROUPS, own, WIDTH)
    mask = torch.rand(rows, 1, new, own) < 0.6
    mask[..., -1] = True
    shared = SharedPrefixes(prefixes, owners)
    for layer in range(LAYERS):
        bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
        ours = prefix_attention(query, key, value, bias, shared, layer, 0.3)
        theirs = copied(query, key, value, mask, prefixes, owners, layer)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_rows_that_are_selected_keep_their_prompts():
    torch.manual_seed(0)
    prefixes, owners, index = [prefix(n) for n in (5, 7, 5)], [0, 1, 1, 2, 2], [4, 1, 1, 0]
    query = made(5, HEADS, 1, WIDTH)
    out, lse = SharedPrefixes(prefixes, owners).attend(query, 1, 0.3)
    chosen_out, chosen_lse = SharedPrefixes(prefixes, owners).select(index).attend(query[index], 1, 0.3)
    torch.testing.assert_close(chosen_out, out[index])
    torch.testing.assert_close(chosen_lse, lse[index])


def test_keys_of_a_long_prompt_are_not_copied():
    long = prefix(20_000)
    shared = SharedPrefixes([long], [0] * 8).select([0, 1, 2])
    for (key, value), (held_key, held_value) in zip(long.layers, shared._stacks[0].layers, strict=True):
        assert held_key.data_ptr() == key.data_ptr()
        assert held_value.data_ptr() == value.data_ptr()


@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_scores_that_are_written_out_equal_the_kernel(at_once, monkeypatch):
    """What a device without a kernel for biased scores computes, a few rows at a time."""
    torch.manual_seed(0)
    query, key, value = made(3, HEADS, 5, WIDTH), made(3, GROUPS, 9, WIDTH), made(3, GROUPS, 9, WIDTH)
    bias = torch.zeros(3, 1, 5, 9, dtype=torch.float64).masked_fill_(torch.rand(3, 1, 5, 9) < 0.4, float("-inf"))
    bias[..., 0] = 0.0
    kernel = masked_forward(query, key, value, bias, 0.3)
    monkeypatch.setattr(kernels, "MAX_SCORES", at_once)
    for ours, theirs in zip(kernels.written_out(query, key, value, bias, 0.3), kernel, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
