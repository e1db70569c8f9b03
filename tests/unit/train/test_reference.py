"""The reference of a policy with an adapter is the policy as it was, whatever the policy has become."""

import numpy as np
import pytest
import torch

from mmrl.config import LoraSection, OptimizerSection
from mmrl.models.load import load_checkpoint
from mmrl.models.lora import adapter_parameters
from mmrl.protocols import LossTerms
from mmrl.train.engine import TorchEngine
from mmrl.train.optim import build_optimizer, select_parameters
from mmrl.train.reference import AdapterReference
from mmrl.types import MediaSpan, Row, Tokens

PLAIN = {"family": None, "dtype": "float32", "device": "cpu"}


def load(folder, targets=None):
    return load_checkpoint(folder, **PLAIN, lora=LoraSection(rank=4, targets=targets))


@pytest.fixture
def row(checkpoint, picture):
    """(a row about a picture, its medium)"""
    medium, family = picture(), checkpoint.family
    grid = family.grid(medium)
    span = MediaSpan(key=medium.key, start=2, length=int(np.prod(grid)), grid=grid)
    pad = family.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    ids_T = np.array([5, 9, *[pad] * span.length, 11, 30, 31, 32, 33, 34])
    target_N = np.arange(len(ids_T) - 5, len(ids_T))
    positions_3T = family.positions(Tokens(ids=tuple(ids_T.tolist()), spans=(span,)))
    row = Row(ids_T=ids_T, positions_3T=positions_3T, spans=(span,), source_N=target_N - 1, target_N=ids_T[target_N])
    return [row], {medium.key: medium}


def climb(inputs):
    """Raises every log-prob."""
    ones = torch.ones_like(inputs.logprobs_N)
    return LossTerms(value=float(-inputs.logprobs_N.sum()), d_logprobs_N=-ones)


def engine_of(checkpoint, optimizer=None):
    return TorchEngine(checkpoint.model, checkpoint.family, optimizer, micro_batch_tokens=4096, max_grad_norm=1.0)


@pytest.mark.parametrize("targets", [None, ["*.v_proj", "model.visual.*.qkv"]])
def test_it_stays_where_the_stage_began(model_dir, row, tmp_path, targets):
    checkpoint = load(model_dir, targets)
    base = engine_of(load_checkpoint(model_dir, **PLAIN)).logprobs(*row)
    section = OptimizerSection(lr={"start": 0.01})
    optimizer = build_optimizer(select_parameters(checkpoint.model, ["*"], []), section)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    policy = engine_of(checkpoint, optimizer)

    untouched = AdapterReference(engine_of(checkpoint), checkpoint.model, save(checkpoint, tmp_path / "0"))
    assert torch.equal(untouched.logprobs(*row), base)  # an adapter that has learned nothing is no adapter
    policy.update(*row, climb)
    policy.update(*row, climb)
    began = policy.logprobs(*row)
    assert (began - base).abs().max() > 1e-3

    reference = AdapterReference(engine_of(checkpoint), checkpoint.model, save(checkpoint, tmp_path / "1"))
    assert torch.equal(reference.logprobs(*row), began)
    policy.update(*row, climb)
    after = policy.logprobs(*row)
    weights = {name: value.clone() for name, value in adapter_parameters(checkpoint.model).items()}
    assert torch.equal(reference.logprobs(*row), began)
    assert torch.equal(untouched.logprobs(*row), base)
    assert (after - began).abs().max() > 1e-3
    assert torch.equal(policy.logprobs(*row), after)
    assert all(torch.equal(value, weights[name]) for name, value in adapter_parameters(checkpoint.model).items())


def test_its_temperature_is_the_policys(model_dir, row, tmp_path):
    checkpoint = load(model_dir)
    policy = engine_of(checkpoint)
    reference = AdapterReference(engine_of(checkpoint), checkpoint.model, save(checkpoint, tmp_path))
    policy.temperature = reference.temperature = 0.5
    assert torch.equal(reference.logprobs(*row), policy.logprobs(*row))


def save(checkpoint, folder):
    checkpoint.save(folder)
    return folder
