"""The chunked head against autograd on the whole matrix of logits."""

import pytest
import torch

from mmrl.models import logprob
from mmrl.models.logprob import head_logits, processed_logprobs, target_logprobs

RESERVED = (0, 2)


def whole(weight, hidden, target, temperature):
    logits = hidden @ weight.T / temperature
    logits = logits.index_fill(1, torch.tensor(RESERVED), float("-inf"))
    logprobs = torch.log_softmax(logits, -1)
    kept = logprobs[:, [i for i in range(len(weight)) if i not in RESERVED]]
    entropies = -(kept.exp() * kept).sum(1)
    return logprobs.gather(1, target[:, None])[:, 0], entropies


@pytest.mark.parametrize("rows_at_once", [1, 4, 100])
def test_values_and_gradients_equal_autograd_on_all_logits(rows_at_once, monkeypatch):
    monkeypatch.setattr(logprob, "CHUNK_LOGITS", 0)
    monkeypatch.setattr(logprob, "MIN_ROWS", rows_at_once)
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False).double()
    hidden = torch.randn(23, 16, dtype=torch.float64, requires_grad=True)
    target = torch.randint(3, 50, (23,))
    weights = torch.randn(2, 23, dtype=torch.float64)
    results = []
    for found in (target_logprobs(head, hidden, target, 0.8, RESERVED), whole(head.weight, hidden, target, 0.8)):
        loss = (torch.stack(found) * weights).sum()
        results.append([*found, *torch.autograd.grad(loss, [hidden, head.weight])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_logits_of_bfloat16_weights_are_added_up_in_float32():
    torch.manual_seed(0)
    head = torch.nn.Linear(512, 300, bias=False).bfloat16()
    hidden = torch.randn(9, 512).bfloat16()
    exact = hidden.double() @ head.weight.double().T
    logits = head_logits(head, hidden)
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().max() < 1e-5 * exact.abs().max()
    assert (head(hidden).double() - exact).abs().max() > 1e-4 * exact.abs().max()
    ours, _ = target_logprobs(head, hidden, torch.zeros(9, dtype=torch.long), 1.0, ())
    torch.testing.assert_close(ours, torch.log_softmax(exact, 1)[:, 0].float(), rtol=0, atol=1e-5)


def test_gradients_of_bfloat16_weights_are_rounded_once():
    torch.manual_seed(0)
    head = torch.nn.Linear(32, 60, bias=False).bfloat16()
    hidden = torch.randn(40, 32).bfloat16().requires_grad_()
    target = torch.randint(3, 60, (40,))
    logprobs, _ = target_logprobs(head, hidden, target, 1.0, RESERVED)
    ours = torch.autograd.grad(logprobs.sum(), [hidden, head.weight])
    exact_hidden, weight = hidden.detach().double().requires_grad_(), head.weight.detach().double().requires_grad_()
    theirs = torch.autograd.grad(whole(weight, exact_hidden, target, 1.0)[0].sum(), [exact_hidden, weight])
    for gradient, exact in zip(ours, theirs, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient.double() - exact).abs().max() < 2**-8 * exact.abs().max()


def test_a_target_that_is_never_sampled_has_no_probability():
    head = torch.nn.Linear(8, 20, bias=False)
    logprobs, entropies = target_logprobs(head, torch.randn(2, 8), torch.tensor([RESERVED[1], 5]), 1.0, RESERVED)
    assert logprobs[0] == float("-inf")
    assert torch.isfinite(logprobs[1])
    assert torch.isfinite(entropies).all()


def test_a_frozen_head_gets_no_gradient():
    head = torch.nn.Linear(8, 20, bias=False).requires_grad_(False)
    hidden = torch.randn(3, 8, requires_grad=True)
    target_logprobs(head, hidden, torch.tensor([3, 4, 5]), 1.0, RESERVED)[0].sum().backward()
    assert head.weight.grad is None
    assert hidden.grad.abs().sum() > 0


def test_no_target_gives_no_value():
    head = torch.nn.Linear(8, 20, bias=False)
    hidden = torch.zeros(0, 8, requires_grad=True)
    logprobs, entropies = target_logprobs(head, hidden, torch.zeros(0, dtype=torch.long), 1.0, RESERVED)
    assert logprobs.shape == entropies.shape == (0,)
    logprobs.sum().backward()
    assert head.weight.grad.abs().sum() == 0


def test_engines_and_trainer_share_the_definition():
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(8, 20, bias=False), torch.randn(5, 8)
    target = torch.randint(3, 20, (5,))
    sampled = processed_logprobs(head_logits(head, hidden), 0.7, RESERVED).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(target_logprobs(head, hidden, target, 0.7, RESERVED)[0], sampled, rtol=0, atol=1e-6)
