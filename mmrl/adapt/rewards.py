"""Reward functions written for TRL, EasyR1, verl, ms-swift and verifiers, run as they are.

The style is found from the names of the parameters (`MARKS`); mmrl.adapt.styles states what each is called with. A
function that is not async runs in a process of its own (mmrl.adapt.worker), an async one here, on copies.

A result must be a finite number, or a dict with "overall" (EasyR1) or "score" (others); further keys are not read. None
means "not applicable" to TRL, ms-swift and verifiers. Anything else is an error that names the function and the row.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any

from mmrl.adapt.styles import ANSWER_NAMES, CALLS, FILLED, TRL_NAMES, Style, Takes, columns, ground_truth
from mmrl.adapt.worker import CallError, Worker, describe, plain
from mmrl.config import RewardSection
from mmrl.errors import ConfigError
from mmrl.protocols import Reward, RewardContext
from mmrl.resolve import build, construct, import_object, suggest
from mmrl.scoring import WeightedReward
from mmrl.types import Group, Sample, Score, Trajectory

MARKS: dict[str, Style] = {
    "completions": "trl",
    "completion": "verifiers",
    "reward_input": "easyr1",
    "reward_inputs": "easyr1",
    "predict_str": "easyr1",
    "solution_str": "verl",
    "solution_strs": "verl",
    "group": "mmrl",
}
"""A parameter of this name decides the style. A class whose instances take `completions` is ms-swift's."""
NULLABLE: tuple[Style, ...] = ("trl", "ms_swift", "verifiers")
"""Styles in which None means that the reward does not apply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Keys of a reward function's entry; the others are arguments of the function."""

    style: Style | None = None
    """None finds it from the names of the parameters."""
    timeout_s: float = 60.0
    """Of one call."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < math.inf:
            raise ValueError("timeout_s must be more than 0 seconds")


def build_rewards(sections: Sequence[RewardSection]) -> tuple[WeightedReward, ...]:
    """The `rewards` of a configuration."""
    return tuple(
        WeightedReward(
            name=section.name,
            reward=build_reward(section.use, section.fields, f"rewards.{number}"),
            weight=section.weight.at,
        )
        for number, section in enumerate(sections)
    )


def build_reward(use: str, fields: Mapping[str, Any], where: str) -> Reward:
    """The reward that a configuration names: a dataclass with `score`, or a function of one of the styles."""
    target = import_object(use)
    if is_dataclass(target) or not callable(target):
        reward: Reward = build(use, fields, where)
        if not hasattr(reward, "score"):
            raise ConfigError(f"{where}: {use} is not a reward: it has no 'score'")
        return reward
    given = dict(fields)
    own: dict[str, Any] = {key: given.pop(key) for key in ("style", "timeout_s") if key in given}
    return _adapted(target, use, construct(Options, use, own, where), given, where)


def _adapted(target: Any, use: str, options: Options, given: dict[str, Any], where: str) -> Reward:
    is_class = inspect.isclass(target)
    function = target.__call__ if is_class else target
    takes = Takes.of(function, is_method=is_class)
    style = options.style or _style(takes, is_class, f"{where}: {use}")
    configured = Takes.of(target) if is_class else takes
    _check_given(configured, given, style, use, where)
    passed = () if is_class else FILLED.get(style)
    if passed is not None:
        _check_filled(configured, (*passed, *given), style, f"{where}: {use}")
    if style == "mmrl":
        return GroupFunction(function=partial(target, **given))
    run: Callable[..., Awaitable[Any]]
    if inspect.iscoroutinefunction(function):
        run = partial(_awaited, target(**given) if is_class else target, options.timeout_s)
    else:
        run = Worker(use, timeout_s=options.timeout_s, fields=given if is_class else None).call
    return FunctionReward(use=use, style=style, takes=takes, given={} if is_class else given, run=run)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFunction:
    """A function of a group and its context, as Reward.score is, async or not."""

    function: Callable[..., Any]

    async def score(self, group: Group, context: RewardContext) -> list[Score]:
        scores = self.function(group, context)
        return await scores if inspect.isawaitable(scores) else scores


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionReward:
    """A reward function of another framework as a reward."""

    use: str
    style: Style
    takes: Takes
    given: Mapping[str, Any]
    """Arguments from the configuration."""
    run: Callable[..., Awaitable[Any]]
    """Calls the function; CallError where that gives no value."""

    async def score(self, group: Group, context: RewardContext) -> list[Score]:
        """One Score for each sibling; nothing that the function does raises."""
        siblings = group.trajectories
        lacking = self._lacking(group.sample)
        if lacking is not None:
            return [lacking] * len(siblings)
        calls = CALLS[self.style](self.takes, group, context)
        results = await asyncio.gather(*(self._result(*call) for call in calls.arguments))
        values = self._split(results[0], len(siblings)) if calls.whole else results
        return [self._score(value, one, group.sample) for value, one in zip(values, siblings, strict=True)]

    def _lacking(self, sample: Sample) -> Score | None:
        """The score of a row that has not what the function asks for."""
        no_gold = Score.not_applicable("the row has no gold answer")
        if self.style in ("easyr1", "verl"):
            return no_gold if ground_truth(sample) is None else None
        known = columns(sample)
        for name in self.takes.required:
            if name in ANSWER_NAMES and known[name] is None and name not in self.given:
                return no_gold
            if self.style == "trl" and not (name in TRL_NAMES or name in known or name in self.given):
                return Score.error(f"{self.use}: {place(sample)}: its metadata have no {name!r}")
        return None

    async def _result(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        try:
            return await self.run(*arguments, **{**named, **self.given})
        except CallError as error:
            return error

    def _split(self, result: Any, count: int) -> list[Any]:
        """The result of a call for `count` siblings, one by one."""
        if isinstance(result, CallError):
            return [result] * count
        if not isinstance(result, list) or len(result) != count:
            found = f"{len(result)}" if isinstance(result, list) else f"{result!r:.100}"
            return [CallError(f"must give a list of {count} values, gave {found}")] * count
        return result

    def _score(self, value: Any, trajectory: Trajectory, sample: Sample) -> Score:
        try:
            number = self._number(value)
        except CallError as error:
            return Score.error(f"{self.use}: {place(sample)}, rollout {trajectory.index}: {error}")
        return Score.not_applicable(f"{self.use} gave None") if number is None else Score.of(number)

    def _number(self, value: Any) -> float | None:
        if isinstance(value, CallError):
            raise value
        if value is None and self.style in NULLABLE:
            return None
        if isinstance(value, dict):
            key = "overall" if self.style == "easyr1" else "score"
            if key not in value:
                raise CallError(f"gave a dict without {key!r}: {value!r:.100}")
            value = value[key]
        if not isinstance(value, (int, float)):
            raise CallError(f"must give a number, gave {value!r:.100}")
        if not math.isfinite(value):
            raise CallError(f"gave {value}")
        return float(value)


def place(sample: Sample) -> str:
    return sample.where or f"row {sample.id}"


async def _awaited(function: Callable[..., Awaitable[Any]], timeout_s: float, *arguments: Any, **named: Any) -> Any:
    """Await a function that is given copies."""
    limit = asyncio.timeout(timeout_s)
    try:
        arguments, named = copy.deepcopy((arguments, named))
        async with limit:
            return plain(await function(*arguments, **named))
    except Exception as error:  # a user's function may raise anything
        raise CallError(f"took longer than {timeout_s:g} s" if limit.expired() else describe(error)) from error


def _style(takes: Takes, is_class: bool, place: str) -> Style:
    found = {MARKS[name] for name in takes.names if name in MARKS}
    if len(found) != 1:
        raise ConfigError(
            f"{place}: the parameters ({', '.join(takes.names)}) do not tell its style; "
            f"set style to one of {', '.join(sorted({*MARKS.values(), 'ms_swift'}))}"
        )
    style = found.pop()
    return "ms_swift" if style == "trl" and is_class else style


def _check_given(takes: Takes, given: Mapping[str, Any], style: Style, use: str, where: str) -> None:
    """Every further key of the configuration must be a parameter; TRL's **names are columns of the row."""
    for key in given:
        if key not in takes.names and not (takes.others and style != "trl"):
            raise ConfigError(f"{where}.{key}: {use} has no such parameter{suggest(key, takes.names)}")


def _check_filled(takes: Takes, passed: Sequence[str], style: Style, place: str) -> None:
    """Every parameter that must be passed can be."""
    for name in takes.required:
        if name not in passed:
            raise ConfigError(f"{place}: there is nothing to pass as {name!r} (style {style}); give it a value here")
