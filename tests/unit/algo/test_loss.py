"""Losses in weight form against known answers of TRL and verl, and against float64 autograd of the written-out loss."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.algo.aggregate import coefficients
from mmrl.algo.kl import kl_penalty
from mmrl.algo.loss import GrpoLoss, SftLoss
from mmrl.protocols import LossInputs

# One group of four trajectories with 3, 2, 3 and 1 tokens; rewards 1, 0, 0, 0.
OLD = torch.tensor([-1.0, -0.5, -2.0, -0.7, -1.2, -0.3, -2.5, -1.0, -1.5], dtype=torch.float64)
NEW = torch.tensor([-0.8, -0.6, -1.5, -0.9, -1.0, -0.3, -3.0, -0.9, -0.2], dtype=torch.float64)
REF = torch.tensor([-1.1, -0.4, -1.9, -0.6, -1.1, -0.4, -2.4, -1.1, -1.4], dtype=torch.float64)
ENTROPY = torch.tensor([0.9, 0.2, 1.6, 0.5, 1.1, 0.1, 2.0, 0.7, 0.3], dtype=torch.float64)
LENGTHS = [3, 2, 3, 1]
TRAJECTORY = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
STD = [1.5, -0.5, -0.5, -0.5]
PLAIN = [0.75, -0.25, -0.25, -0.25]


def loss_of(mode="token_mean", advantages=STD, length=4, **options):
    return GrpoLoss(
        advantages_N=torch.tensor(advantages, dtype=torch.float64)[TRAJECTORY],
        coef_N=torch.from_numpy(coefficients(mode, TRAJECTORY.numpy(), np.zeros(4, int), length)),
        trajectory_N=TRAJECTORY,
        **{"old_logprobs_N": OLD, "ref_logprobs_N": REF} | options,
    )


def inputs(index=None):
    index = torch.arange(9) if index is None else index
    return LossInputs(logprobs_N=NEW[index], entropies_N=ENTROPY[index], index_N=index)


@pytest.mark.parametrize(
    ("options", "value", "gradient"),
    [
        ({"mode": "seq_mean"}, 0.2941, [0, -0.1131, 0, 0.0512, 0.0763, 0.0417, 0, 0.0460, 0.4587]),
        ({}, -0.0722, [0, -0.1508, 0, 0.0455, 0.0679, 0.0556, 0, 0.0614, 0.2038]),
        (
            {"mode": "const", "advantages": PLAIN},
            -0.0203,
            [0, -0.0424, 0, 0.0128, 0.0191, 0.0156, 0, 0.0173, 0.0573],
        ),
        ({"clip_high": 0.28}, -0.0891, [-0.2036, -0.1508, 0, 0.0455, 0.0679, 0.0556, 0, 0.0614, 0.2038]),
        ({"dual_clip": 3.0}, -0.1094, [0, -0.1508, 0, 0.0455, 0.0679, 0.0556, 0, 0.0614, 0]),
        (
            {"mode": "seq_mean", "ratio": "sequence"},
            0.2431,
            [0, 0, 0, 0.0625, 0.0625, 0.0365, 0.0365, 0.0365, 0.4587],
        ),
        ({"mode": "seq_mean", "ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4}, 0.3335, None),
    ],
)
def test_known_answers(options, value, gradient):
    terms = loss_of(**options)(inputs())
    assert terms.value == pytest.approx(value, abs=5e-5)
    if gradient is not None:
        np.testing.assert_allclose(terms.d_logprobs_N.numpy(), gradient, atol=5.1e-5)


def written_out(logprobs, entropies, *, mode, low, high, dual, ratio, kl, beta, entropy_coef, advantages):
    """The loss as the papers write it, trajectory by trajectory."""
    logratio = logprobs - OLD
    if ratio == "sequence":
        logratio = torch.cat([part.mean().expand(len(part)) for part in logratio.split(LENGTHS)])
    advantage = torch.tensor(advantages, dtype=torch.float64)[TRAJECTORY]
    r = logratio.exp()
    objective = torch.minimum(r * advantage, r.clamp(1 - low, 1 + high) * advantage)
    if dual is not None:
        objective = torch.where(advantage < 0, torch.maximum(objective, dual * advantage), objective)
    d = REF - logprobs
    penalty = d.exp() - d - 1 if kl == "k3" else d.square() / 2
    token = -objective + beta * penalty - entropy_coef * entropies
    if mode == "token_mean":
        return token.mean()
    return torch.stack([part.mean() for part in token.split(LENGTHS)]).mean()


@pytest.mark.parametrize("mode", ["token_mean", "seq_mean"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("dual", [None, 2.0])
@pytest.mark.parametrize("kl", ["k2", "k3"])
@pytest.mark.parametrize("advantages", [STD, [-1.0, 2.0, 0.0, 0.7]])
def test_value_and_derivatives_equal_float64_autograd(mode, ratio, dual, kl, advantages):
    options = {"kl": kl, "ratio": ratio}
    terms = loss_of(mode, advantages, clip_high=0.3, dual_clip=dual, kl_beta=0.4, entropy_coef=0.3, **options)(inputs())
    logprobs, entropies = NEW.clone().requires_grad_(), ENTROPY.clone().requires_grad_()
    value = written_out(
        logprobs,
        entropies,
        mode=mode,
        low=0.2,
        high=0.3,
        dual=dual,
        beta=0.4,
        entropy_coef=0.3,
        advantages=advantages,
        **options,
    )
    value.backward()
    assert terms.value == pytest.approx(float(value.detach()), rel=1e-12)
    torch.testing.assert_close(terms.d_logprobs_N, logprobs.grad)
    torch.testing.assert_close(terms.d_entropies_N, entropies.grad)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.sampled_from(["token", "sequence"]))
def test_cutting_a_step_into_micro_batches_changes_nothing(batch_of_trajectory, ratio):
    loss = loss_of("seq_mean", ratio=ratio, kl_beta=0.1, entropy_coef=0.1)
    whole = loss(inputs())
    value, gradient = 0.0, torch.zeros(9, dtype=torch.float64)
    for batch in set(batch_of_trajectory):
        members = [i for i, b in enumerate(batch_of_trajectory) if b == batch]
        index = torch.nonzero(torch.isin(TRAJECTORY, torch.tensor(members)))[:, 0]
        terms = loss(inputs(index))
        value += terms.value
        gradient[index] = terms.d_logprobs_N
    assert value == pytest.approx(whole.value, rel=1e-12)
    torch.testing.assert_close(gradient, whole.d_logprobs_N)


def test_without_old_log_probs_the_ratio_is_one():
    terms = loss_of(old_logprobs_N=None)(inputs())
    same = loss_of(old_logprobs_N=NEW)(inputs())
    assert terms.value == same.value
    torch.testing.assert_close(terms.d_logprobs_N, -loss_of().advantages_N / 9)


def test_clip_fraction_is_the_share_of_targets_without_gradient():
    loss = loss_of(advantages=[1.5, -0.5, -0.5, 0.0])
    assert loss.clip_fraction(NEW) == pytest.approx(3 / 8)  # tokens 0 and 2 above, token 6 below; one has no advantage


def test_extreme_ratios_do_not_overflow():
    old = torch.tensor([-1000.0, 0.0] * 4 + [-1000.0], dtype=torch.float64)
    terms = loss_of(old_logprobs_N=old, ref_logprobs_N=NEW + 900, kl_beta=1.0, clip_high=1e9)(inputs())
    assert np.isfinite(terms.value)
    assert torch.isfinite(terms.d_logprobs_N).all()


def test_k1_is_refused_as_a_loss():
    with pytest.raises(ValueError, match="k2 or k3"):
        kl_penalty("k1", NEW, REF)


def test_the_kl_penalty_is_zero_and_flat_at_the_reference():
    for kind in ("k2", "k3"):
        value, weight = kl_penalty(kind, REF, REF)
        assert value.abs().max() == 0
        assert weight.abs().max() == 0


def test_sft_is_the_cross_entropy():
    coef = torch.from_numpy(coefficients("token_mean", TRAJECTORY.numpy(), np.arange(4)))
    logits = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    target = torch.arange(9) % 5
    logprobs = torch.log_softmax(logits, -1)[torch.arange(9), target]
    index = torch.arange(9)
    terms = SftLoss(coef_N=coef)(LossInputs(logprobs_N=logprobs.detach(), entropies_N=ENTROPY, index_N=index))
    logprobs.backward(terms.d_logprobs_N)
    ours, logits.grad = logits.grad.clone(), None
    expected = torch.nn.functional.cross_entropy(logits, target)
    expected.backward()
    assert terms.value == pytest.approx(float(expected.detach()))
    torch.testing.assert_close(ours, logits.grad)
