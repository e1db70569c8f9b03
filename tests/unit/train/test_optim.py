"""Which parameters are trained; what bfloat16 weights learn from small updates."""

import copy

import pytest
import torch

from mmrl.config import LoraSection, OptimizerSection
from mmrl.errors import ConfigError
from mmrl.models.lora import add_adapter
from mmrl.train.optim import MasterAdamW, build_optimizer, select_parameters, set_learning_rate

SECTION = OptimizerSection(lr={"start": 1e-6}, weight_decay=0.1)


@pytest.fixture
def weights():
    """weights(dtype) are a matrix and a vector; equal numbers in every dtype."""

    def make(dtype):
        generator = torch.Generator().manual_seed(0)
        shapes = {"matrix": (8, 16), "vector": (16,)}
        # From 1/64 to 1/5: half a unit of bfloat16's last place is at least 6e-5.
        values = {name: torch.rand(shape, generator=generator).mul(0.18).add(1 / 64) for name, shape in shapes.items()}
        return {name: torch.nn.Parameter(value.bfloat16().to(dtype)) for name, value in values.items()}

    return make


def gradients(parameters):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(p.shape, generator=generator).bfloat16() for name, p in parameters.items()}


def descend(parameters, steps, optimizer=None):
    """`steps` updates by constant gradients, given by autograd."""
    optimizer = optimizer or build_optimizer(parameters, SECTION)
    slopes = gradients(parameters)
    for step in range(steps):
        set_learning_rate(optimizer, SECTION, step)
        optimizer.zero_grad(set_to_none=True)
        sum((p * slopes[name].to(p.dtype)).sum() for name, p in parameters.items()).backward()
        optimizer.step()
    return optimizer


def plain_adamw(parameters):
    groups = [{"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0} for p in parameters.values()]
    return torch.optim.AdamW(groups, lr=0.0, betas=SECTION.betas, eps=SECTION.eps, fused=True)


def test_bfloat16_moves_as_float32_does_where_plain_adamw_stands_still(weights):
    exact, low, plain = weights(torch.float32), weights(torch.bfloat16), weights(torch.bfloat16)
    descend(exact, 200)
    descend(low, 200)
    descend(plain, 200, plain_adamw(plain))
    for name, began in weights(torch.bfloat16).items():
        assert torch.equal(low[name], exact[name].bfloat16()), name
        assert torch.equal(plain[name], began), name
        assert not torch.equal(low[name], began), name


def test_updates_too_small_to_show_add_up_in_the_copies(weights):
    exact, low = weights(torch.float32), weights(torch.bfloat16)
    descend(exact, 200)
    optimizer = descend(low, 200)
    for name, parameter in low.items():
        master = optimizer.state[parameter]["master"]
        assert torch.equal(master, exact[name])
        moved = (master - weights(torch.float32)[name]).abs()
        assert 1.9e-4 < moved.max() < 2.1e-4  # 200 steps of 1e-6
        assert torch.equal(parameter, master.bfloat16())


def test_micro_batches_are_summed_in_float32(weights):
    low = weights(torch.bfloat16)
    optimizer = build_optimizer(low, SECTION)
    assert isinstance(optimizer, MasterAdamW)
    for _ in range(1000):
        (low["vector"] * torch.tensor(0.01, dtype=torch.bfloat16)).sum().backward()
    assert low["vector"].grad.dtype == torch.float32
    one = float(torch.tensor(0.01, dtype=torch.bfloat16))
    assert torch.allclose(low["vector"].grad, torch.full((16,), 1000 * one), rtol=1e-5)  # in bfloat16 it stops at 2


def test_a_parameter_without_gradient_stays_as_it_is(weights):
    low = weights(torch.bfloat16)
    optimizer = build_optimizer(low, SECTION)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 1.0
    low["matrix"].sum().backward()
    optimizer.step()
    assert torch.equal(low["vector"], weights(torch.bfloat16)["vector"])
    assert not torch.equal(low["matrix"], weights(torch.bfloat16)["matrix"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_weights_keep_the_plain_optimiser(weights, dtype):
    ours, theirs = weights(dtype), weights(dtype)
    optimizer = descend(ours, 20)
    assert type(optimizer) is torch.optim.AdamW
    descend(theirs, 20, plain_adamw(theirs))
    for name in ours:
        assert torch.equal(ours[name], theirs[name])
        assert not torch.equal(ours[name], weights(dtype)[name])


@pytest.fixture
def adapted(checkpoint):
    """The tiny model with an adapter on its text model."""
    model = copy.deepcopy(checkpoint.model)
    add_adapter(model, checkpoint.family.text_model(model), LoraSection(rank=2, alpha=4), "base", seed=0)
    return model


def test_everything_means_the_adapter_where_there_is_one(adapted):
    chosen = select_parameters(adapted, ["*"], [])
    assert len(chosen) == 2 * 7 * 4  # A and B of seven layers in each of four blocks
    assert all(".lora_" in name for name in chosen)
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == set(chosen)


def test_patterns_choose_among_adapters(adapted):
    chosen = select_parameters(adapted, ["*.q_proj.*", "*.k_proj.*"], ["*.layers.0.*", "model.visual.*"])
    assert len(chosen) == 2 * 2 * 3
    assert all("layers.0." not in name for name in chosen)


@pytest.mark.parametrize(
    ("train", "freeze", "words"),
    [
        (["*", "model.visual.*"], [], "'model.visual.*' matches base weights only, which model.lora keeps frozen"),
        (["*.q_proj.base_layer.weight"], [], "base weights only"),
        (["*vissual*"], [], "'*vissual*' matches no parameter; names look like 'model.language_model.*lora_A"),
        (["*"], ["*vissual*"], "'*vissual*' matches no parameter"),
        (["*"], ["*"], "no parameter is left to train"),
    ],
)
def test_patterns_that_train_nothing_are_refused(adapted, train, freeze, words):
    with pytest.raises(ConfigError) as caught:
        select_parameters(adapted, train, freeze)
    for part in words.split("*lora_A"):
        assert part in str(caught.value)
