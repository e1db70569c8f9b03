"""The optimiser step against plain autograd."""

import copy

import numpy as np
import pytest
import torch

from mmrl.config import OptimizerSection
from mmrl.models.embed import fill
from mmrl.models.logprob import target_logprobs
from mmrl.models.text import control_id
from mmrl.protocols import LossTerms
from mmrl.train.engine import NonFiniteError, TorchEngine
from mmrl.train.forward import placed
from mmrl.train.optim import build_optimizer, select_parameters
from mmrl.train.rows import micro_batches
from mmrl.types import MediaSpan, Row, Tokens


@pytest.fixture
def model(checkpoint):
    return copy.deepcopy(checkpoint.model)


@pytest.fixture
def rows(checkpoint, picture):
    """Rows of different length; two share a picture, one has two, one has none."""
    rng = np.random.default_rng(0)
    pictures = [picture(0), picture(1, 112, 56)]
    shown = [[pictures[0]], [pictures[0], pictures[1]], [], [pictures[1]]]
    return [make_row(checkpoint.family, rng, m, 5 + 4 * n) for n, m in enumerate(shown)], {m.key: m for m in pictures}


def make_row(family, rng, media, length):
    ids, spans = rng.integers(0, 200, 3).tolist(), []
    for medium in media:
        grid = family.grid(medium)
        spans.append(MediaSpan(key=medium.key, start=len(ids), length=int(np.prod(grid)), grid=grid))
        ids += [control_id(family.tokenizer, "<|image_pad|>")] * spans[-1].length + [7]
    ids += rng.integers(0, 200, length).tolist()
    target, ids_T = np.arange(len(ids) - length, len(ids)), np.array(ids)
    positions = family.positions(Tokens(ids=tuple(ids), spans=tuple(spans)))
    return Row(ids_T=ids_T, positions_3T=positions, spans=tuple(spans), source_N=target - 1, target_N=ids_T[target])


def weighted(weights_N, entropy_N):
    """A loss of fixed weights: sum(w * log-prob) + sum(e * entropy)."""

    def loss(inputs):
        w, e = weights_N[inputs.index_N], entropy_N[inputs.index_N]
        value = float((w * inputs.logprobs_N + e * inputs.entropies_N).sum())
        return LossTerms(value=value, d_logprobs_N=w, d_entropies_N=e)

    return loss


def engine_of(model, family, *, tokens=10**6, norm=1e9, lr=0.0, train=("*",)):
    optimizer = build_optimizer(select_parameters(model, train, ()), OptimizerSection(lr={"start": lr}))
    for group in optimizer.param_groups:
        group["lr"] = lr
    return TorchEngine(model, family, optimizer, micro_batch_tokens=tokens, max_grad_norm=norm)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain_gradients(model, family, rows, media, weights_N, entropy_N):
    """Every row alone, pixels to loss in one graph."""
    model.zero_grad()
    start, total = 0, 0.0
    for row in rows:
        shown = [media[span.key] for span in row.spans]
        features = dict(zip([m.key for m in shown], family.encode_media(model, shown), strict=True))
        positions = torch.tensor(row.positions_3T)[:, None]
        embeds = model.get_input_embeddings()(torch.tensor(row.ids_T)[None])
        embeds = fill(embeds, positions, list(placed(0, row.spans, features))).embeds_BTD
        hidden = model.model.language_model(inputs_embeds=embeds, position_ids=positions).last_hidden_state[0]
        logprobs, entropies = target_logprobs(
            model.lm_head, hidden[row.source_N], torch.tensor(row.target_N), 1.0, family.reserved_ids
        )
        end = start + len(logprobs)
        total = total + (weights_N[start:end] * logprobs + entropy_N[start:end] * entropies).sum()
        start = end
    total.backward()
    return float(total.detach()), gradients(model)


@pytest.mark.parametrize("tokens", [10**6, 60, 1])
def test_loss_and_gradient_equal_plain_autograd_however_the_step_is_cut(model, checkpoint, rows, tokens):
    rows, media = rows
    count = sum(len(row.target_N) for row in rows)
    weights_N, entropy_N = torch.randn(2, count, generator=torch.Generator().manual_seed(0)) / count
    expected, plain = plain_gradients(model, checkpoint.family, rows, media, weights_N, entropy_N)
    engine = engine_of(model, checkpoint.family, tokens=tokens)
    metrics = engine.update(rows, media, weighted(weights_N, entropy_N))
    assert metrics["loss"] == pytest.approx(expected, rel=1e-4)
    ours = gradients(model)
    assert ours.keys() == plain.keys()
    assert any("visual" in name for name in ours)
    for name, gradient in plain.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_each_image_is_encoded_once_a_step(model, checkpoint, rows, monkeypatch):
    rows, media = rows
    encoded = []
    encode = checkpoint.family.encode_media
    monkeypatch.setattr(checkpoint.family, "encode_media", lambda m, media: encoded.extend(media) or encode(m, media))
    ones = torch.ones(sum(len(row.target_N) for row in rows))
    engine_of(model, checkpoint.family, tokens=1).update(rows, media, weighted(ones, ones))
    assert len(encoded) == 2


def test_frozen_parameters_keep_their_values_and_get_no_gradient(model, checkpoint, rows):
    rows, media = rows
    before = copy.deepcopy(model.state_dict())
    ones = torch.ones(sum(len(row.target_N) for row in rows))
    engine = engine_of(model, checkpoint.family, lr=0.1, train=("model.language_model.*",))
    assert not engine.trains_vision
    engine.update(rows, media, weighted(ones, ones))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any("visual" in name for name in changed)


def test_a_loss_that_is_not_finite_leaves_the_weights(model, checkpoint, rows):
    rows, media = rows
    before = copy.deepcopy(model.state_dict())
    weights = torch.ones(sum(len(row.target_N) for row in rows))
    weights[3] = float("nan")
    engine = engine_of(model, checkpoint.family, lr=0.1)
    with pytest.raises(NonFiniteError):
        engine.update(rows, media, weighted(weights, weights))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradients_are_scaled_to_the_given_norm(model, checkpoint, rows):
    rows, media = rows
    ones = torch.ones(sum(len(row.target_N) for row in rows))
    metrics = engine_of(model, checkpoint.family, norm=0.5).update(rows, media, weighted(ones, ones))
    assert metrics["grad_norm"] > 0.5
    total = torch.stack([g.norm() for g in gradients(model).values()]).norm()
    assert float(total) == pytest.approx(0.5, rel=1e-3)


def test_micro_batches_hold_every_row_once_within_the_padded_limit(rows):
    rows, _ = rows
    for limit in (1, 30, 80, 10**6):
        batches = micro_batches(rows, limit)
        assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(len(rows[i].ids_T) for i in batch) <= limit


def test_a_pattern_that_matches_no_parameter_is_refused(model):
    from mmrl.errors import ConfigError

    with pytest.raises(ConfigError, match="vissual"):
        select_parameters(model, ["*"], ["*vissual*"])
