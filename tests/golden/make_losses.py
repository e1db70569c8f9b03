"""Makes losses.json: recorded trajectories, and ten losses on them by plain loops over Python numbers.

It shares no line with mmrl.algo, so that the file is evidence. Run it again only to add a loss:
python tests/golden/make_losses.py
"""

import json
import math
import random
import statistics
from pathlib import Path

LENGTH = 12
"""Of the 'const' aggregation."""
LOSSES = {
    "grpo": {"aggregate": "seq_mean"},
    "dapo": {"clip_high": 0.28},
    "dr_grpo": {"aggregate": "const", "scale": "none"},
    "gspo": {"aggregate": "seq_mean", "ratio": "sequence", "clip_low": 0.03, "clip_high": 0.04},
    "dual_clip": {"dual_clip": 1.2},
    "kl_k3": {"kl_beta": 0.1},
    "kl_k2": {"kl_beta": 0.1, "kl": "k2", "aggregate": "seq_sum"},
    "entropy_bonus": {"entropy_coef": 0.05},
    "rloo": {"centre": "loo", "scale": "none", "aggregate": "token_sum"},
    "lite_ppo": {"scale": "std_batch", "aggregate": "question_mean"},
}
DEFAULTS = {
    "centre": "mean",
    "scale": "std_group",
    "aggregate": "token_mean",
    "ratio": "token",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "dual_clip": None,
    "kl_beta": 0.0,
    "kl": "k3",
    "entropy_coef": 0.0,
}


def record(seed=7):
    """Three groups of four trajectories: log-probs when sampled, now and of the reference, entropies, rewards."""
    rng = random.Random(seed)
    trajectories = []
    for group in range(3):
        for _ in range(4):
            old = [round(-rng.expovariate(1.2), 4) for _ in range(rng.randint(3, LENGTH))]
            trajectories.append(
                {
                    "group": group,
                    "reward": rng.choice([0.0, 0.1, 1.0, 1.4]),
                    "old": old,
                    "new": [round(min(value + rng.gauss(0, 0.25), -0.0001), 4) for value in old],
                    "ref": [round(min(value + rng.gauss(0, 0.4), -0.0001), 4) for value in old],
                    "entropy": [round(rng.expovariate(1.5), 4) for _ in old],
                }
            )
    return trajectories


def advantages(trajectories, centre, scale):
    rewards = [t["reward"] for t in trajectories]
    result = []
    for t in trajectories:
        group = [other["reward"] for other in trajectories if other["group"] == t["group"]]
        mean = sum(group) / len(group)
        value = t["reward"] - mean
        if centre == "loo":
            value = t["reward"] - (sum(group) - t["reward"]) / (len(group) - 1)
        if scale == "std_group":
            value /= statistics.stdev(group) + 1e-4
        if scale == "std_batch":
            value /= statistics.stdev(rewards) + 1e-4
        result.append(value)
    return result


def token_loss(t, k, advantage, o):
    """(loss, derivative by the new log-prob; in a sequence ratio, by the mean log-ratio)."""
    log_ratio = t["new"][k] - t["old"][k]
    if o["ratio"] == "sequence":
        log_ratio = sum(n - m for n, m in zip(t["new"], t["old"], strict=True)) / len(t["new"])
    ratio = math.exp(log_ratio)
    clipped = min(max(ratio, 1 - o["clip_low"]), 1 + o["clip_high"])
    if ratio * advantage <= clipped * advantage:
        loss, slope = -ratio * advantage, -ratio * advantage
    else:
        loss, slope = -clipped * advantage, 0.0
    if o["dual_clip"] is not None and advantage < 0 and loss > -o["dual_clip"] * advantage:
        loss, slope = -o["dual_clip"] * advantage, 0.0
    difference = t["ref"][k] - t["new"][k]
    if o["kl"] == "k3":
        penalty, penalty_slope = math.exp(difference) - difference - 1, 1 - math.exp(difference)
    else:
        penalty, penalty_slope = difference**2 / 2, -difference
    loss += o["kl_beta"] * penalty - o["entropy_coef"] * t["entropy"][k]
    return loss, slope + o["kl_beta"] * penalty_slope


def weight(trajectories, t, aggregate):
    tokens = sum(len(other["new"]) for other in trajectories)
    in_group = sum(len(other["new"]) for other in trajectories if other["group"] == t["group"])
    groups = len({other["group"] for other in trajectories})
    return {
        "token_mean": 1 / tokens,
        "token_sum": 1.0,
        "seq_sum": 1 / len(trajectories),
        "seq_mean": 1 / (len(trajectories) * len(t["new"])),
        "const": 1 / (len(trajectories) * LENGTH),
        "question_mean": 1 / (groups * in_group),
    }[aggregate]


def loss(trajectories, options):
    """{"value", "gradient_norm"} of one loss over all trajectories."""
    o = DEFAULTS | options
    value, squares = 0.0, 0.0
    for t, advantage in zip(trajectories, advantages(trajectories, o["centre"], o["scale"]), strict=True):
        for k in range(len(t["new"])):
            one, slope = token_loss(t, k, advantage, o)
            share = weight(trajectories, t, o["aggregate"])
            value += share * one
            squares += (share * slope) ** 2
    return {"value": value, "gradient_norm": math.sqrt(squares)}


def golden():
    trajectories = record()
    return {"trajectories": trajectories, "losses": {name: loss(trajectories, o) for name, o in LOSSES.items()}}


if __name__ == "__main__":
    Path(__file__).with_name("losses.json").write_text(json.dumps(golden(), indent=1) + "\n")
