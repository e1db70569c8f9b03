"""Which parameters are trained, and by which optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch.optim.adamw import adamw

from mmrl.config import OptimizerSection, RunConfig, stage_name
from mmrl.errors import ConfigError
from mmrl.models.load import Checkpoint
from mmrl.models.lora import adapter_parameters


def check_stages(config: RunConfig, checkpoint: Checkpoint) -> None:
    """ConfigError for what any stage is to train and cannot: told before the first one starts, not hours later."""
    towers = {p for tower in checkpoint.family.towers(checkpoint.model) for p in tower.parameters()}
    for stage in config.stages:
        chosen = chosen_parameters(checkpoint.model, stage.train, stage.freeze)
        stale = stage.type == "grpo" and config.rollout.staleness
        if stale and not towers.isdisjoint(chosen.values()):
            raise ConfigError(
                f"rollout.staleness: stage {stage_name(stage)!r} trains a media encoder, whose features rollouts in "
                "flight still use; freeze it (freeze: ['*visual*'] in the stage), or set staleness to 0"
            )


def select_parameters(model: Any, train: Sequence[str], freeze: Sequence[str]) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name; the others stop requiring gradients. Errors as in chosen_parameters."""
    chosen = chosen_parameters(model, train, freeze)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return chosen


def chosen_parameters(model: Any, train: Sequence[str], freeze: Sequence[str]) -> dict[str, torch.nn.Parameter]:
    """The parameters that these patterns choose, by name.

    Of a model with an adapter these are the adapter's alone. ConfigError for a pattern that matches nothing: it is a
    misspelling, or names weights that stay frozen.
    """
    parameters = dict(model.named_parameters())
    candidates = adapter_parameters(model) or parameters
    for patterns, known in ((train, candidates), (freeze, parameters)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise ConfigError(f"train/freeze: {pattern!r} matches {_nothing(pattern, candidates, parameters)}")
    chosen = {
        name: parameter
        for name, parameter in candidates.items()
        if any(fnmatchcase(name, p) for p in train) and not any(fnmatchcase(name, p) for p in freeze)
    }
    if not chosen:
        raise ConfigError("train/freeze: no parameter is left to train")
    return chosen


def _nothing(pattern: str, candidates: dict[str, Any], parameters: dict[str, Any]) -> str:
    """What a useless pattern matches instead, for an error."""
    example = next(iter(candidates))
    if any(fnmatchcase(name, pattern) for name in parameters):
        return f"base weights only, which model.lora keeps frozen; adapters are named like {example!r}"
    return f"no parameter; names look like {example!r}"


class MasterAdamW(torch.optim.AdamW):
    """AdamW for bfloat16 parameters: it updates float32 copies, from float32 gradients, and rounds them into the model.

    In bfloat16 itself an update below 1/512 of a weight is lost. The copies are part of the state, as "master".
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, **options)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad_dtype = torch.float32  # so that autograd sums micro-batches in float32

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "the gradient is computed before the step"
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [self._state(parameter) for parameter in trained]
            adamw(
                [state["master"] for state in states],
                [parameter.grad.float() for parameter in trained],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for parameter, state in zip(trained, states, strict=True):
                parameter.copy_(state["master"])

    def _state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """As AdamW keeps it, with the copy; begun at the first step."""
        state: dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            master = parameter.detach().float()
            state |= {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
                "master": master,
            }
        return state


def build_optimizer(parameters: dict[str, torch.nn.Parameter], section: OptimizerSection) -> torch.optim.AdamW:
    """AdamW; weight decay spares vectors (norms, biases)."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": section.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    low = any(torch.finfo(parameter.dtype).bits < 32 for parameter in parameters.values())
    return (MasterAdamW if low else torch.optim.AdamW)(
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
