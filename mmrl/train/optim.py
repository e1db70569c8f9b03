"""Which parameters are trained, and by which optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from mmrl.config import OptimizerSection
from mmrl.errors import ConfigError


def select_parameters(model: Any, train: Sequence[str], freeze: Sequence[str]) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name; the others stop requiring gradients.

    ConfigError for a pattern that matches nothing: it is a misspelling.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in (*train, *freeze):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"train/freeze: {pattern!r} matches no parameter; names look like {names[0]!r}")
    chosen = {}
    for name, parameter in model.named_parameters():
        wanted = any(fnmatchcase(name, p) for p in train) and not any(fnmatchcase(name, p) for p in freeze)
        parameter.requires_grad_(wanted)
        if wanted:
            chosen[name] = parameter
    if not chosen:
        raise ConfigError("train/freeze: no parameter is left to train")
    return chosen


def build_optimizer(parameters: dict[str, torch.nn.Parameter], section: OptimizerSection) -> torch.optim.AdamW:
    """AdamW; weight decay spares vectors (norms, biases)."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": section.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=section.betas,
        eps=section.eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, section: OptimizerSection, step: int) -> float:
    """Set the rate of optimiser step `step` (from 0) and return it."""
    rate = section.lr.at(step) * min(1.0, (step + 1) / (section.warmup_steps + 1))
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate
