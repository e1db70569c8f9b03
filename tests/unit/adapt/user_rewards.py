"""Reward functions as the users of other frameworks write them."""
# ruff: noqa: B905

import ast
import asyncio
import json
import os
import re
import signal
import sys
import time
from typing import Any

import numpy as np


def find_answer(text):
    found = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return found.group(1).strip() if found else ""


def iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / area


# TRL


def trl_format(completions, **kwargs):
    """Checks that the completion has the form <think>...</think><answer>...</answer>."""
    pattern = r"<think>.*?</think>\s*<answer>.*?</answer>"
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.fullmatch(pattern, content, re.DOTALL) else 0.0 for content in contents]


def trl_accuracy(completions, solution, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if find_answer(c) == find_answer(s) else 0.0 for c, s in zip(contents, solution)]


def trl_iou(completions, solution, **kwargs):
    rewards = []
    for completion, gold in zip(completions, solution):
        try:
            box = ast.literal_eval(find_answer(completion[0]["content"]))
            rewards.append(iou(box, gold))
        except Exception:
            rewards.append(0.0)
    return rewards


async def trl_judge(prompts, completions, **kwargs):
    async def ask(prompt, completion):
        await asyncio.sleep(0)
        return float(prompt[-1]["content"] == "Which?" and "7" in completion[0]["content"])

    return await asyncio.gather(*(ask(p, c) for p, c in zip(prompts, completions)))


def trl_tool_use(completions, completion_ids, trainer_state, log_metric, **kwargs):
    log_metric("calls", 1.0)
    return [sum(message["role"] == "tool" for message in c) + trainer_state.global_step for c in completions]


def trl_only_maths(completions, kind, **kwargs):
    return [1.0 if name == "maths" else None for name in kind]


def trl_signature(completions, prompts, completion_ids, answer, boxes, **kwargs):
    """Records what it was given."""
    print(json.dumps([completions, prompts, completion_ids, answer, boxes, sorted(kwargs)]))
    return [float(len(boxes[0]))] * len(completions)


def trl_needs_page(completions, page):
    return [float(number) for number in page]


def trl_math_verify(completions, solution, **kwargs):
    """The usual form: its own time limit is a signal, and whatever it raises is a zero."""
    from math_verify import parse, verify

    rewards = []
    for completion, gold in zip(completions, solution):
        reward = 0.0
        try:
            if float(verify(parse(gold), parse(completion[0]["content"]))) > 0:
                reward = 1.0
        except Exception:
            pass
        rewards.append(reward)
    return rewards


# EasyR1


def easyr1_batch(reward_inputs: list[dict[str, Any]], format_weight: float = 0.1) -> list[dict[str, float]]:
    scores = []
    for one in reward_inputs:
        format_score = float(bool(re.fullmatch(r".*<answer>.*</answer>.*", one["response"], re.DOTALL)))
        accuracy = float(find_answer(one["response"]) == one["ground_truth"])
        overall = (1 - format_weight) * accuracy + format_weight * format_score
        scores.append({"overall": overall, "format": format_score, "accuracy": accuracy})
    return scores


def easyr1_single(reward_input: dict[str, Any], **kwargs) -> dict[str, float]:
    return {
        "overall": kwargs.get("scale", 1) * float(find_answer(reward_input["response"]) == reward_input["ground_truth"])
    }


def easyr1_old(predict_str: str, ground_truth: str) -> float:
    return 1.0 if find_answer(predict_str) == ground_truth else 0.0


def easyr1_no_overall(reward_input):
    return {"accuracy": 1.0}


# verl


def verl_score(data_source, solution_str, ground_truth, extra_info=None):
    if data_source != "clevr":
        raise NotImplementedError(f"Reward function is not implemented for {data_source=}")
    return float(find_answer(solution_str) == ground_truth) * (extra_info or {}).get("worth", 1)


def verl_dict(data_source, solution_str, ground_truth, extra_info=None, bonus=0.0, **kwargs):
    return {"score": np.float32(find_answer(solution_str) == ground_truth) + bonus, "acc": 1.0}


def verl_batch(data_sources, solution_strs, ground_truths, extra_infos):
    return [float(find_answer(s) == g) for s, g in zip(solution_strs, ground_truths)]


def verl_judge(data_source, solution_str, ground_truth, judge, extra_info=None):
    return 1.0


# ms-swift


class ORM:
    def __init__(self, args=None, **kwargs):
        self.args = args

    def __call__(self, **kwargs):
        raise NotImplementedError


class SwiftAccuracy(ORM):
    def __call__(self, completions, solution, **kwargs) -> list[float]:
        return [1.0 if find_answer(c) == s else 0.0 for c, s in zip(completions, solution)]


class SwiftLength(ORM):
    def __init__(self, limit: int = 10):
        self.limit = limit

    async def __call__(self, completions: list[str], **kwargs) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(text) <= self.limit) for text in completions]


class SwiftMade(SwiftAccuracy):
    def __init__(self, model):
        self.model = model


# verifiers


async def verifiers_exact(completion, answer) -> float:
    return float(find_answer(completion[-1]["content"]) == answer)


def verifiers_info(prompt, completion, info, state) -> float:
    return float(info["worth"]) if state["completion"] == completion and prompt else 0.0


def verifiers_parser(completion, parser) -> float:
    return 1.0


# mmrl's own form, as a function


async def own(group, context, worth=1.0):
    from mmrl.types import Score

    return [Score.of(worth * context.step) for _ in group.trajectories]


# those that misbehave


def mystery(x, y):
    return 0.0


def hostile(completions, what, **kwargs):
    n, kind = len(completions), what[0]
    if kind == "raise":
        raise ZeroDivisionError("division by zero")
    if kind == "exit":
        sys.exit(3)
    if kind == "die":
        os._exit(7)
    if kind == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "sleep":
        time.sleep(60)
    if kind == "regex":
        re.match(r"(a+)+$", "a" * 60 + "b")
    if kind == "print":
        print("x" * 1_000_000)
    if kind == "mutate":
        for completion in completions:
            completion[0]["content"] = "gone"
        what.clear()
        kwargs.clear()
    return {
        "none": None,
        "short": [1.0] * (n - 1),
        "long": [1.0] * (n + 1),
        "scalar": 1.0,
        "nan": [float("nan")] * n,
        "inf": [float("inf")] * n,
        "text": ["1.0"] * n,
        "lists": [[1.0]] * n,
        "objects": [object()] * n,
        "complex": [1j] * n,
        "dict": {"0": 1.0},
        "generator": (1.0 for _ in range(n)),
        "one bad": [1.0] * (n - 1) + [float("nan")],
        "huge": [10**400] * n,
        "array": np.ones(n),
        "bools": [True] * n,
        "tuple": (1,) * n,
    }.get(kind, [0.5] * n)


async def hostile_async(completions, what, **kwargs):
    if what[0] == "sleep":
        await asyncio.sleep(60)
    if what[0] == "raise":
        raise TimeoutError("the judge is away")
    completions[0][0]["content"] = "gone"
    what.clear()
    return [0.5] * len(completions)
