"""The patch embedding as a matrix product against the convolution that it replaces."""

import copy

import families
import pytest
import torch
import transformers

from mmrl.models.load import find_kind, load_checkpoint
from mmrl.models.patches import PatchProjection, use_matrix_patches


def test_values_and_gradients_equal_the_convolution():
    torch.manual_seed(0)
    theirs = torch.nn.Conv3d(3, 16, (2, 14, 14), (2, 14, 14)).double()
    ours = PatchProjection(copy.deepcopy(theirs))
    patches = torch.randn(20, 3, 2, 14, 14, dtype=torch.float64)
    weight = torch.randn(20, 16, dtype=torch.float64)
    results = []
    for module in (ours, theirs):
        output = module(patches).view(20, 16)
        (output * weight).sum().backward()
        results.append([output, module.weight.grad, module.bias.grad])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_overlapping_patches_are_refused():
    with pytest.raises(AssertionError, match="overlap"):
        PatchProjection(torch.nn.Conv3d(3, 8, (2, 14, 14), (2, 7, 7)))


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen2_5_omni"])
def test_towers_keep_their_parameters_names_and_values(name, tmp_path):
    path = families.write(name, tmp_path / "model")
    ours = load_checkpoint(path, family=None, dtype="float32", device="cpu").model
    kind = getattr(transformers, find_kind(name).model)
    theirs = kind.from_pretrained(path)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    tower = theirs.visual if name == "qwen2_5_omni" else theirs.model.visual
    patches = torch.randn(8, tower.patch_embed.proj.weight[0].numel())
    before = tower.patch_embed(patches)
    use_matrix_patches(tower)
    torch.testing.assert_close(tower.patch_embed(patches), before, rtol=1e-5, atol=1e-4)
