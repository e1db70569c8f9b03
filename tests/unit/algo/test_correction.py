"""Weights against the engine's mismatch: hand-made known answers, and float64 autograd of the written-out loss."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.algo.aggregate import coefficients
from mmrl.algo.correction import Correction, correction_weights
from mmrl.algo.loss import GrpoLoss
from mmrl.protocols import LossInputs

# One group of four trajectories with 3, 2, 3 and 1 tokens; rewards 1, 0, 0, 0.
OLD = torch.tensor([-1.0, -0.5, -2.0, -0.7, -1.2, -0.3, -2.5, -1.0, -1.5], dtype=torch.float64)
NEW = torch.tensor([-0.8, -0.6, -1.5, -0.9, -1.0, -0.3, -3.0, -0.9, -0.2], dtype=torch.float64)
REF = torch.tensor([-1.1, -0.4, -1.9, -0.6, -1.1, -0.4, -2.4, -1.1, -1.4], dtype=torch.float64)
ENGINE = torch.tensor([-1.05, -0.45, -2.2, -0.7, -1.3, -0.2, -2.5, -1.0, -3.0], dtype=torch.float64)
ENTROPY = torch.tensor([0.9, 0.2, 1.6, 0.5, 1.1, 0.1, 2.0, 0.7, 0.3], dtype=torch.float64)
LENGTHS = [3, 2, 3, 1]
TRAJECTORY = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
ADVANTAGE = torch.tensor([1.5, -0.5, -0.5, -0.5], dtype=torch.float64)[TRAJECTORY]
TOKEN = [1.0513, 0.9512, 1.2214, 1.0, 1.1052, 0.9048, 1.0, 1.0, 4.4817]
PRODUCT = [1.2214] * 3 + [1.1052] * 2 + [0.9048] * 3 + [4.4817]
EVERY = [
    Correction(kind=kind, level=level, low=low, high=high)
    for kind, low, high in (("truncate", 0.0, 1.1), ("mask", 0.5, 3.0), ("mask", 0.96, 1.15))
    for level in ("token", "sequence")
]


def loss_of(correction, mode="token_mean", **options):
    return GrpoLoss(
        advantages_N=ADVANTAGE,
        coef_N=torch.from_numpy(coefficients(mode, TRAJECTORY.numpy(), np.zeros(4, int))),
        trajectory_N=TRAJECTORY,
        correction=correction,
        **{"old_logprobs_N": OLD, "ref_logprobs_N": REF, "engine_logprobs_N": ENGINE} | options,
    )


def inputs(index=None, logprobs=NEW):
    index = torch.arange(9) if index is None else index
    return LossInputs(logprobs_N=logprobs[index], entropies_N=ENTROPY[index], index_N=index)


@pytest.mark.parametrize(
    ("options", "weights", "changed"),
    [
        ({"high": 3.0}, [*TOKEN[:-1], 3.0], [8]),
        ({"high": 3.0, "kind": "mask"}, [*TOKEN[:-1], 0.0], [8]),
        ({"high": 1.2, "low": 0.93, "kind": "mask"}, [1.0513, 0.9512, 0, 1, 1.1052, 0, 1, 1, 0], [2, 5, 8]),
        ({"high": 3.0, "level": "sequence"}, [*PRODUCT[:-1], 3.0], [8]),
        ({"high": 1.2, "level": "sequence"}, [1.2] * 3 + PRODUCT[3:8] + [1.2], [0, 1, 2, 8]),
        ({"high": 1.5, "low": 1.0, "level": "sequence", "kind": "mask"}, PRODUCT[:5] + [0] * 4, [5, 6, 7, 8]),
    ],
)
def test_weights_have_known_values(options, weights, changed):
    found, changed_N = correction_weights(OLD - ENGINE, TRAJECTORY, Correction(**options))
    np.testing.assert_allclose(found.numpy(), weights, atol=5e-5)
    assert torch.nonzero(changed_N)[:, 0].tolist() == changed


@pytest.mark.parametrize(
    ("kind", "level", "value"),
    [
        ("truncate", "token", 0.2902),
        ("mask", "token", -0.3214),
        ("truncate", "sequence", 0.2101),
        ("mask", "sequence", -0.4015),
    ],
)
def test_the_corrected_loss_has_known_values(kind, level, value):
    terms = loss_of(Correction(kind=kind, level=level, high=3.0))(inputs())
    assert terms.value == pytest.approx(value, abs=5e-5)


def written_out(logprobs, entropies, correction, *, strict):
    """seq_mean PPO with a weight by trajectory loops; KL and entropy stand outside the weight."""
    sampled = logprobs.detach() if strict else OLD
    weights = []
    for trainer, engine in zip(sampled.split(LENGTHS), ENGINE.split(LENGTHS), strict=True):
        ratio = trainer.exp() / engine.exp()
        if correction.level == "sequence":
            ratio = ratio.prod().expand(len(ratio))
        for value in ratio.tolist():
            inside = value <= correction.high and (correction.kind == "truncate" or value >= correction.low)
            outside = correction.high if correction.kind == "truncate" else 0.0
            weights.append(value if inside else outside)
    r = (logprobs - sampled).exp()
    surrogate = torch.minimum(r * ADVANTAGE, r.clamp(0.8, 1.3) * ADVANTAGE)
    d = REF - logprobs
    token = -torch.tensor(weights, dtype=torch.float64) * surrogate + 0.4 * (d.exp() - d - 1) - 0.3 * entropies
    return torch.stack([part.mean() for part in token.split(LENGTHS)]).mean()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("correction", EVERY)
def test_value_and_derivatives_equal_float64_autograd(correction, strict):
    old = {"old_logprobs_N": None} if strict else {}
    loss = loss_of(correction, "seq_mean", clip_high=0.3, kl_beta=0.4, entropy_coef=0.3, **old)
    logprobs, entropies = NEW.clone().requires_grad_(), ENTROPY.clone().requires_grad_()
    value = written_out(logprobs, entropies, correction, strict=strict)
    value.backward()
    terms = loss(inputs())
    assert terms.value == pytest.approx(float(value.detach()), rel=1e-12)
    torch.testing.assert_close(terms.d_logprobs_N, logprobs.grad)
    torch.testing.assert_close(terms.d_entropies_N, entropies.grad)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.sampled_from(EVERY), st.booleans())
def test_cutting_a_step_into_micro_batches_changes_nothing(batch_of_trajectory, correction, strict):
    loss = loss_of(correction, "seq_mean", **({"old_logprobs_N": None} if strict else {}))
    whole = loss(inputs())
    value, gradient = 0.0, torch.zeros(9, dtype=torch.float64)
    for batch in set(batch_of_trajectory):
        members = torch.tensor([i for i, b in enumerate(batch_of_trajectory) if b == batch])
        index = torch.nonzero(torch.isin(TRAJECTORY, members))[:, 0].flip(0)
        terms = loss(inputs(index))
        value += terms.value
        gradient[index] = terms.d_logprobs_N
    assert value == pytest.approx(whole.value, rel=1e-12)
    torch.testing.assert_close(gradient, whole.d_logprobs_N)


@pytest.mark.parametrize("correction", EVERY)
def test_an_engine_that_agrees_changes_nothing(correction):
    same = loss_of(correction, engine_logprobs_N=OLD)(inputs())
    plain = loss_of(None)(inputs())
    assert same.value == pytest.approx(plain.value, rel=1e-12)
    torch.testing.assert_close(same.d_logprobs_N, plain.d_logprobs_N)


@pytest.mark.parametrize("correction", EVERY)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_differences_do_not_overflow(correction, size):
    engine = ENGINE + torch.tensor([size, 0.0, -size] * 3, dtype=torch.float64)
    terms = loss_of(correction, engine_logprobs_N=engine)(inputs())
    assert np.isfinite(terms.value)
    assert torch.isfinite(terms.d_logprobs_N).all()


def test_a_masked_target_is_no_clipped_one():
    """clip_fraction says what the clip did; what the correction did is measured apart."""
    masks_all = Correction(kind="mask", low=1.0, high=1.0)
    assert loss_of(masks_all).clip_fraction(NEW) == loss_of(None).clip_fraction(NEW) > 0
