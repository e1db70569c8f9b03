"""Shared-prefix attention against attention under an explicit mask, in value and gradient."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mmrl.attention.kernels import CPU, KERNELS, PLAIN
from mmrl.attention.tree import Node, Tree, tree_attention

FORESTS = {
    "one row": [Node(0, 7, 7)],
    "a group": [Node(0, 9, 20), Node(9, 12, 12), Node(12, 13, 13), Node(13, 20, 20)],
    "packed groups": [Node(0, 5, 9), Node(5, 7, 7), Node(7, 9, 9), Node(9, 40, 43), Node(40, 41, 41), Node(41, 43, 43)],
    "branches of whole blocks": [Node(0, 32, 224), Node(32, 96, 96), Node(96, 160, 160), Node(160, 224, 224)],
    "rows without a shared prefix": [Node(0, 3, 3), Node(3, 7, 7), Node(7, 20, 20)],
    "branches of branches": [
        Node(0, 6, 30),
        Node(6, 10, 20),
        Node(10, 13, 13),
        Node(13, 20, 20),
        Node(20, 22, 30),
        Node(22, 23, 30),
        Node(23, 27, 27),
        Node(27, 30, 30),
    ],
}


def mask_of(nodes):
    total = nodes[-1].below
    visible = torch.zeros(total, total, dtype=torch.bool)
    for node in nodes:
        own = torch.ones(node.end - node.start, node.end - node.start, dtype=torch.bool).tril()
        visible[node.start : node.end, node.start : node.end] = own
        visible[node.end : node.below, node.start : node.end] = True
    return visible


def masked(query, key, value, mask, scale):
    repeat = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(repeat, dim=1) for states in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def states(total, heads=4, groups=2, width=8, dtype=torch.float64):
    torch.manual_seed(0)
    # Laid out as a model's projections are: heads behind tokens.
    made = [torch.randn(1, total, count, width, dtype=dtype) for count in (heads, groups, groups)]
    return [tensor.transpose(1, 2).requires_grad_() for tensor in made]


def with_gradients(attend, inputs):
    output = attend(*inputs)
    torch.manual_seed(1)
    weight = torch.randn(output.shape, dtype=torch.float64).to(output.dtype)
    return [output, *torch.autograd.grad((output * weight).sum(), inputs)]


@pytest.mark.parametrize("kernel", [CPU, PLAIN], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("name", FORESTS)
def test_outputs_and_gradients_equal_those_under_a_mask(name, kernel, monkeypatch):
    monkeypatch.setattr("mmrl.attention.tree.kernel_for", lambda query: kernel)
    nodes = FORESTS[name]
    inputs = states(nodes[-1].below)
    ours = with_gradients(lambda q, k, v: tree_attention(q, k, v, Tree.of(nodes), 0.3), inputs)
    theirs = with_gradients(lambda q, k, v: masked(q, k, v, mask_of(nodes), 0.3), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_lower_precision_stays_close_to_float64(dtype, tolerance):
    nodes = FORESTS["branches of branches"]
    exact = states(nodes[-1].below)
    rounded = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    tree = Tree.of(nodes)
    ours = with_gradients(lambda q, k, v: tree_attention(q, k, v, tree, 0.3), rounded)
    theirs = with_gradients(lambda q, k, v: tree_attention(q, k, v, tree, 0.3), exact)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.double() - b).abs().max() < tolerance * b.abs().max()


def test_what_follows_a_branch_changes_nothing_in_its_siblings():
    nodes = FORESTS["a group"]
    query, key, value = states(20)
    before = tree_attention(query, key, value, Tree.of(nodes), 0.3)
    key, value = key.detach().clone(), value.detach().clone()
    key[:, :, 13:], value[:, :, 13:] = 100.0, 100.0
    after = tree_attention(query, key, value, Tree.of(nodes), 0.3)
    assert torch.equal(before[:, :, :13], after[:, :, :13])
    assert not torch.equal(before[:, :, 13:], after[:, :, 13:])


def test_nodes_of_like_length_are_computed_together():
    nodes = FORESTS["packed groups"]
    tree = Tree.of(nodes)
    assert len(tree.parts) < len(nodes)
    assert tree.shared == (nodes[0], nodes[3])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("flash", torch.bfloat16, 2e-2), ("flash", torch.float16, 4e-3), ("efficient", torch.float32, 1e-4)],
)
@pytest.mark.parametrize("forest", FORESTS)
def test_kernels_of_a_gpu_equal_plain_attention(forest, name, dtype, tolerance, monkeypatch):
    nodes = FORESTS[forest]
    exact = states(nodes[-1].below)
    theirs = with_gradients(lambda q, k, v: masked(q, k, v, mask_of(nodes), 0.3), exact)
    monkeypatch.setattr("mmrl.attention.tree.kernel_for", lambda query: KERNELS[name])
    inputs = [tensor.detach().to("cuda", dtype).requires_grad_() for tensor in exact]
    tree = Tree.of(nodes, "cuda")
    output = tree_attention(*inputs, tree, 0.3)
    torch.manual_seed(1)
    weight = torch.randn(output.shape, dtype=torch.float64).to("cuda", dtype)
    ours = [output, *torch.autograd.grad((output * weight).sum(), inputs)]
    for a, b in zip(ours, theirs, strict=True):
        assert (a.double().cpu() - b).abs().max() < tolerance * b.abs().max()
