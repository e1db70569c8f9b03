"""How the reward functions of other frameworks are called: what a group is in the words of each.

- A response is the model's turns as it wrote them, tool calls included, joined by line breaks.
- Where messages are asked for (TRL, verifiers), each model turn is an assistant message, with `tool_calls` where it
  called. After each but the last stands a tool message: a part for each medium that came back, and the error text.
- Columns are the row's metadata and, by their usual names, its gold values.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

from mmrl.errors import ConfigError
from mmrl.protocols import RewardContext
from mmrl.types import Group, Message, Sample, Trajectory, Turn

Style = Literal["trl", "easyr1", "verl", "ms_swift", "verifiers", "mmrl"]
ANSWER_NAMES = ("answer", "solution", "ground_truth")
"""Columns in which data sets keep the gold answer."""
TRL_NAMES = ("prompts", "completions", "completion_ids", "trainer_state", "environments", "log_extra", "log_metric")
VERL_NAMES = ("data_source", "solution_str", "ground_truth", "extra_info")
FILLED: dict[Style, tuple[str, ...]] = {
    "verl": (*VERL_NAMES, *(f"{name}s" for name in VERL_NAMES)),
    "verifiers": ("prompt", "completion", "answer", "state", "info", "task"),
}
"""All that these styles can pass by name; TRL and ms-swift pass any column, EasyR1 passes by position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Takes:
    """The parameters of a function that can be passed by name."""

    names: tuple[str, ...]
    required: tuple[str, ...]
    others: bool
    """It takes names of any kind (**kwargs)."""
    listed: bool
    """Its first parameter is a list: it wants all siblings in one call."""

    @classmethod
    def of(cls, function: Callable[..., Any], *, is_method: bool = False) -> Takes:
        """Read a signature. `is_method` leaves `self` out."""
        try:
            parameters = list(inspect.signature(function).parameters.values())[int(is_method) :]
        except (TypeError, ValueError):
            raise ConfigError(f"{function!r:.100} has no signature that can be read; wrap it in a function") from None
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        return cls(
            names=tuple(p.name for p in named),
            required=tuple(p.name for p in named if p.default is p.empty),
            others=any(p.kind is p.VAR_KEYWORD for p in parameters),
            listed=bool(parameters) and (parameters[0].name == "reward_inputs" or _is_list(parameters[0].annotation)),
        )

    def pick(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `values` that it takes."""
        return {name: value for name, value in values.items() if self.others or name in self.names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """(positional, named) arguments: of one call for the whole group, or of one for each sibling."""

    arguments: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]
    whole: bool


def trl(takes: Takes, group: Group, context: RewardContext) -> Calls:
    named = {
        **_repeated(group),
        "prompts": [_conversation(group.sample) for _ in group.trajectories],
        "completions": [completion(trajectory) for trajectory in group.trajectories],
        "completion_ids": [[i for s in t.segments[1:] for i in s.ids] for t in group.trajectories],
        "trainer_state": SimpleNamespace(global_step=context.step),
        "environments": None,
        "log_extra": ignore,
        "log_metric": ignore,
    }
    return Calls(arguments=[((), takes.pick(named))], whole=True)


def ms_swift(takes: Takes, group: Group, context: RewardContext) -> Calls:
    named = {**_repeated(group), "trainer_state": SimpleNamespace(global_step=context.step)}
    texts = [response(trajectory) for trajectory in group.trajectories]
    return Calls(arguments=[((texts,), takes.pick(named))], whole=True)


def easyr1(takes: Takes, group: Group, context: RewardContext) -> Calls:
    gold = ground_truth(group.sample)
    if "ground_truth" in takes.names:  # as it was before EasyR1 passed a dict
        return Calls(arguments=[((response(t), gold), {}) for t in group.trajectories], whole=False)
    inputs = [
        {"response": response(t), "response_length": t.num_model_tokens, "ground_truth": copy.deepcopy(gold)}
        for t in group.trajectories
    ]
    return Calls(arguments=[((inputs,), {})] if takes.listed else [((one,), {}) for one in inputs], whole=takes.listed)


def verl(takes: Takes, group: Group, context: RewardContext) -> Calls:
    metadata = dict(group.sample.metadata)
    row = {
        "data_source": metadata.get("data_source", ""),
        "ground_truth": ground_truth(group.sample),
        "extra_info": metadata.get("extra_info", metadata),
    }
    items = [{**row, "solution_str": response(trajectory)} for trajectory in group.trajectories]
    if "solution_strs" not in takes.names:
        return Calls(arguments=[((), takes.pick(item)) for item in items], whole=False)
    named = {f"{name}s": [copy.deepcopy(item[name]) for item in items] for name in VERL_NAMES}
    return Calls(arguments=[((), takes.pick(named))], whole=True)


def verifiers(takes: Takes, group: Group, context: RewardContext) -> Calls:
    known = columns(group.sample)
    row = {
        "prompt": _conversation(group.sample),
        "answer": known["answer"],
        "info": dict(group.sample.metadata),
        "task": known.get("task", "default"),
    }
    items = [{**row, "completion": completion(trajectory)} for trajectory in group.trajectories]
    return Calls(arguments=[((), takes.pick({**item, "state": item})) for item in items], whole=False)


CALLS: Mapping[Style, Callable[[Takes, Group, RewardContext], Calls]] = {
    "trl": trl,
    "easyr1": easyr1,
    "verl": verl,
    "ms_swift": ms_swift,
    "verifiers": verifiers,
}


def ignore(*arguments: Any, **named: Any) -> None:
    """Stands for what TRL offers to log with."""


def columns(sample: Sample) -> dict[str, Any]:
    """The row by the names of data sets' columns; its metadata count before its gold values."""
    gold = sample.gold
    return {
        "id": sample.id,
        **dict.fromkeys(ANSWER_NAMES, gold.answer),
        "boxes": [list(box) for box in gold.boxes],
        "points": [list(point) for point in gold.points],
        "spans": [list(span) for span in gold.spans],
        **sample.metadata,
    }


def ground_truth(sample: Sample) -> Any:
    """What verl and EasyR1 compare with: the row's own value, of whatever type, before our reading of it as text."""
    truth = sample.metadata.get("reward_model")
    if isinstance(truth, Mapping) and "ground_truth" in truth:
        return truth["ground_truth"]
    return next((sample.metadata[k] for k in ("ground_truth", "answer") if k in sample.metadata), sample.gold.answer)


def response(trajectory: Trajectory) -> str:
    return "\n".join(turn.text for turn in _written(trajectory))


def completion(trajectory: Trajectory) -> list[dict[str, Any]]:
    """The episode after its prompt, as messages."""
    messages: list[dict[str, Any]] = []
    turns = _written(trajectory)
    for turn in turns:
        messages.append({"role": "assistant", "content": turn.text})
        if turn.calls:
            functions = [{"name": call.name, "arguments": copy.deepcopy(dict(call.arguments))} for call in turn.calls]
            messages[-1]["tool_calls"] = [{"type": "function", "function": function} for function in functions]
        if turn is not turns[-1]:
            text = [{"type": "text", "text": turn.error}] if turn.error else []
            media = [{"type": trajectory.media[key].kind} for key in turn.results]
            messages.append({"role": "tool", "content": [*media, *text] if media else turn.error or ""})
    return messages


def _repeated(group: Group) -> dict[str, list[Any]]:
    """Every column as a list with an entry, its own, for each sibling."""
    return {name: [copy.deepcopy(value) for _ in group.trajectories] for name, value in columns(group.sample).items()}


def _written(trajectory: Trajectory) -> list[Turn]:
    """The turns that the model wrote; at least one, so that every sibling has a completion."""
    return [turn for turn in trajectory.turns if turn.text] or [Turn(segment=0, text="")]


def _conversation(sample: Sample) -> list[dict[str, Any]]:
    """The prompt as chat templates take it: content is text, or parts where there are media."""
    return [
        {
            "role": message.role,
            "content": message.text if all(p.text for p in message.parts) else _parts(message, sample),
        }
        for message in sample.messages
    ]


def _parts(message: Message, sample: Sample) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": part.text} if part.media is None else {"type": sample.media[part.media].kind}
        for part in message.parts
    ]


def _is_list(annotation: Any) -> bool:
    text = annotation if isinstance(annotation, str) else str(annotation)
    return annotation is list or text.removeprefix("typing.").lower().startswith("list")
