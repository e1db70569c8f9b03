"""Ten losses on recorded trajectories equal those of the golden file, to a relative 1e-5."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrl.algo.advantage import group_advantages
from mmrl.algo.aggregate import coefficients
from mmrl.algo.loss import GrpoLoss
from mmrl.protocols import LossInputs

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "losses.json").read_text())
MAKE = runpy.run_path(str(HERE / "make_losses.py"))


@pytest.mark.parametrize("name", MAKE["LOSSES"])
def test_a_loss_and_its_gradient_equal_the_recorded_ones(name):
    options = dict(MAKE["LOSSES"][name])
    trajectories = GOLDEN["trajectories"]
    groups = np.array([t["group"] for t in trajectories])
    trajectory_N = np.repeat(np.arange(len(trajectories)), [len(t["new"]) for t in trajectories])
    advantages_B = group_advantages(
        np.array([t["reward"] for t in trajectories]),
        groups,
        centre=options.pop("centre", "mean"),
        scale=options.pop("scale", "std_group"),
    )
    coef_N = coefficients(options.pop("aggregate", "token_mean"), trajectory_N, groups, MAKE["LENGTH"])
    old, new, ref, entropy = (
        torch.tensor(np.concatenate([t[key] for t in trajectories])) for key in ("old", "new", "ref", "entropy")
    )
    loss = GrpoLoss(
        advantages_N=torch.from_numpy(advantages_B[trajectory_N]),
        coef_N=torch.from_numpy(coef_N),
        trajectory_N=torch.from_numpy(trajectory_N),
        old_logprobs_N=old,
        ref_logprobs_N=ref,
        **options,
    )
    terms = loss(LossInputs(logprobs_N=new, entropies_N=entropy, index_N=torch.arange(len(new))))
    assert terms.value == pytest.approx(GOLDEN["losses"][name]["value"], rel=1e-5)
    assert float(terms.d_logprobs_N.norm()) == pytest.approx(GOLDEN["losses"][name]["gradient_norm"], rel=1e-5)


def test_the_golden_file_is_what_its_maker_makes_and_each_loss_differs():
    assert json.loads(json.dumps(MAKE["golden"]())) == GOLDEN
    assert len(GOLDEN["losses"]) == 10
    assert len({loss["gradient_norm"] for loss in GOLDEN["losses"].values()}) == 10
