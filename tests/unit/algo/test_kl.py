"""The KL penalties against float64 autograd of their definitions, and what makes them fit for a loss."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrl.algo.kl import kl_penalty

DEFINITIONS = {
    "k2": lambda new, ref: (new - ref) ** 2 / 2,
    "k3": lambda new, ref: (ref - new).exp() - (ref - new) - 1,
}
KINDS = pytest.mark.parametrize("kind", DEFINITIONS)
NEW = torch.tensor([-0.8, -0.6, -1.5, -0.9, -1.0, -0.3, -3.0, -0.9, -0.2], dtype=torch.float64)
REF = torch.tensor([-1.1, -0.4, -1.9, -0.6, -1.1, -0.4, -2.4, -1.1, -1.4], dtype=torch.float64)


def one(kind, new, ref):
    """(value, weight) of a single target."""
    value_N, weight_N = kl_penalty(kind, *torch.tensor([[new], [ref]], dtype=torch.float64))
    return value_N.item(), weight_N.item()


@KINDS
@given(st.floats(-12, 0), st.floats(-12, 0))
def test_value_and_weight_equal_autograd_of_the_definition(kind, new, ref):
    leaf = torch.tensor(new, dtype=torch.float64, requires_grad=True)
    expected = DEFINITIONS[kind](leaf, torch.tensor(ref, dtype=torch.float64))
    expected.backward()
    value, weight = one(kind, new, ref)
    assert value == pytest.approx(expected.item(), rel=1e-12, abs=1e-14)
    assert weight == pytest.approx(leaf.grad.item(), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize(
    ("kind", "mean", "first"), [("k2", 0.1244, [0.0333, -0.0222, 0.0444]), ("k3", 0.1038, [0.0288, -0.0246, 0.0366])]
)
def test_known_answers(kind, mean, first):
    value_N, weight_N = kl_penalty(kind, NEW, REF)
    assert value_N.mean().item() == pytest.approx(mean, abs=5e-5)
    assert (weight_N / 9).tolist()[:3] == pytest.approx(first, abs=5e-5)


@KINDS
@given(st.floats(-30, 0), st.floats(-30, 0))
def test_a_penalty_is_never_negative_and_its_descent_leads_to_the_reference(kind, new, ref):
    value, weight = one(kind, new, ref)
    assert value >= -1e-15
    assert weight * (new - ref) >= 0


@KINDS
@pytest.mark.parametrize("gap", [-1e5, -100.0, 100.0, 1e5])
def test_extreme_gaps_do_not_overflow_and_still_lead_to_the_reference(kind, gap):
    value, weight = one(kind, gap, 0.0)
    assert math.isfinite(value)
    assert value >= 0
    assert math.isfinite(weight)
    assert weight * gap > 0


def test_the_expected_weight_of_k2_is_the_gradient_of_the_exact_kl_and_that_of_k3_of_the_forward_kl():
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    ref_N = torch.log_softmax(torch.tensor([1.0, 0.0, -0.5, 0.2], dtype=torch.float64), -1)
    logprobs_N = torch.log_softmax(logits, -1)
    exact = {
        "k2": (logprobs_N.exp() * (logprobs_N - ref_N)).sum(),
        "k3": (ref_N.exp() * (ref_N - logprobs_N)).sum(),
    }
    for kind, kl in exact.items():
        (expected,) = torch.autograd.grad(kl, logits, retain_graph=True)
        _, weight_N = kl_penalty(kind, logprobs_N.detach(), ref_N)
        weights = logprobs_N.detach().exp() * weight_N  # each token, as often as the policy samples it
        (found,) = torch.autograd.grad(logprobs_N, logits, weights, retain_graph=True)
        torch.testing.assert_close(found, expected)
