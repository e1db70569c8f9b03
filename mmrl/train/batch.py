"""What one optimiser step of GRPO is computed from: scored trajectories as rows with advantages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mmrl.algo.advantage import group_advantages, shuffled
from mmrl.algo.correction import Correction, correction_weights
from mmrl.algo.loss import GrpoLoss
from mmrl.config import GrpoStage
from mmrl.models.chatml import ChatML
from mmrl.protocols import LossInputs, LossTerms
from mmrl.train.metrics import gap_metrics, mean
from mmrl.train.rows import build_row, sampled_logprobs, written_turns
from mmrl.types import Group, Media, Row, ScoreKind, StopReason, Trajectory


class Batch:
    """The scored trajectories of one batch of rollouts, as rows with advantages; unscored ones are left out."""

    def __init__(self, groups: Sequence[Group], family: ChatML, config: GrpoStage, seed: int) -> None:
        played = [
            (number, trajectory)
            for number, group in enumerate(groups)
            for trajectory in group.trajectories
            if trajectory.reward.kind is ScoreKind.VALUE and usable(trajectory)
        ]
        self.trajectories = [trajectory for _, trajectory in played]
        self.group_B = np.array([number for number, _ in played], dtype=np.int64)
        self.rewards_B = np.array([trajectory.reward.value for trajectory in self.trajectories])
        self.advantages_B = group_advantages(self.rewards_B, self.group_B, centre=config.centre, scale=config.scale)
        if config.shuffle_advantages:
            self.advantages_B = shuffled(self.advantages_B, self.rewards_B, seed)
        self.rows: list[Row] = [build_row(trajectory, family) for trajectory in self.trajectories]
        self.media = all_media(self.trajectories)
        self.engine_logprobs_N = sampled_logprobs(self.trajectories)
        self.turns = written_turns(self.trajectories)

    def minibatches(self, count: int) -> list[np.ndarray]:
        """Indices of the trajectories of each part; groups stay whole."""
        parts = np.array_split(np.unique(self.group_B), count)
        found = [np.flatnonzero(np.isin(self.group_B, part)) for part in parts]
        return [part for part in found if len(part)]

    def metrics(self) -> dict[str, float]:
        flat = [float(np.ptp(self.advantages_B[self.group_B == group]) == 0) for group in np.unique(self.group_B)]
        return {"zero_groups": mean(flat), "tokens": float(sum(len(row.ids_T) for row in self.rows))}

    def mismatch(self, start_N: torch.Tensor, correction: Correction | None) -> dict[str, float]:
        """How far the engine's log-probs are from the trainer's, and what the correction makes of it.

        Args:
            start_N: the trainer's log-probs at the start of the step.
        """
        gap_N = start_N.double() - torch.from_numpy(self.engine_logprobs_N)
        metrics = gap_metrics(gap_N.numpy(), self.turns)
        if correction is not None:
            lengths = [len(row.target_N) for row in self.rows]
            trajectory_N = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
            weight_N, changed_N = correction_weights(gap_N, trajectory_N, correction)
            changed = float(changed_N.double().mean())
            metrics |= {"correction/weight": float(weight_N.mean()), "correction/changed": changed}
        return metrics


class Watched:
    """Passes a loss on, and keeps the trainer's log-probs on the way."""

    def __init__(self, loss: GrpoLoss) -> None:
        self.loss = loss
        self.logprobs_N = torch.zeros(len(loss.coef_N), dtype=torch.float64)

    def __call__(self, inputs: LossInputs) -> LossTerms:
        self.logprobs_N[inputs.index_N] = inputs.logprobs_N.double().cpu()
        return self.loss(inputs)


def usable(trajectory: Trajectory) -> bool:
    """Whether there is something to train on; a failed engine says nothing about the policy."""
    return trajectory.stop is not StopReason.ENGINE_ERROR and trajectory.num_model_tokens > 0


def all_media(trajectories: Sequence[Trajectory]) -> dict[str, Media]:
    return {key: medium for trajectory in trajectories for key, medium in trajectory.media.items()}
