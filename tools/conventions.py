"""What the tools share: how a call names the medium it means, and the conventions that published systems differ in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, create_model

from mmrl.models.space import SPACES
from mmrl.protocols import CoordinateSpace, ToolError, ToolState
from mmrl.types import Media, MediaKind, TimeSpan

MAX_S = 1e6
"""No medium lasts longer, seconds."""
SpaceName = Literal["own", "seen", "original", "relative_1000", "relative_1"]
Positive = Annotated[int, Field(ge=1)]


def _seconds(value: object) -> object:
    """Checked here and not by bounds: bounds would stand in the schema that the model reads."""
    if type(value) not in (int, float) or not 0 <= value <= MAX_S:  # type: ignore[operator]
        raise ValueError("must be a number of seconds, 0 or more")
    return value


Seconds = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=float)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """How calls of a tool name a medium among those of one kind."""

    index_key: str | None = None
    """Name of the argument that numbers the medium; None where a call cannot say which it means."""
    index_base: Literal[0, 1] = 0
    """Number of the first medium."""
    which: Literal["first", "last"] = "first"
    """The medium that is meant where a call names none."""

    @property
    def unnamed(self) -> int | None:
        """The number that is meant where a call gives none; None is the latest."""
        return self.index_base if self.which == "first" else None

    def pick(self, kind: MediaKind, arguments: Mapping[str, Any], state: ToolState) -> tuple[Media, int]:
        """(medium, its number) that a call means."""
        media = [medium for medium in state.media if medium.kind == kind]
        if not media:
            raise ToolError(f"there is no {kind} to look at")
        last = self.index_base + len(media) - 1
        number = arguments.get(self.index_key, self.unnamed) if self.index_key else self.unnamed
        number = last if number is None else number
        if not self.index_base <= number <= last:
            raise ToolError(f"{kind} must be between {self.index_base} and {last}")
        return media[number - self.index_base], number


@cache
def arguments_model(index_key: str | None, index: int | None, label_key: str | None, **fields: Any) -> type[BaseModel]:
    """A tool's argument model: its own `fields` ((type, description)), the medium's number and a label, if it has them.

    Args:
        index_key: name of the argument that numbers the medium; None where calls do not say which they mean.
        index: the number that is meant where a call gives none; None is the latest.
        label_key: name of an argument that published prompts ask for and that changes nothing.
    """
    made: dict[str, Any] = {name: (kind, Field(description=text)) for name, (kind, text) in fields.items()}
    if index_key:
        text = "number of the medium, in the order shown"
        made[index_key] = (StrictInt, Field(default=index, description=text))
    if label_key:
        made[label_key] = (Annotated[str, Field(max_length=200)], Field(default="", description="what is looked at"))
    return create_model("Arguments", __config__=ConfigDict(extra="forbid", frozen=True), **made)


def spoken_space(name: SpaceName, state: ToolState) -> CoordinateSpace:
    """The space in which calls of a tool are written: the model's own, or the one that the tool is configured to."""
    return state.space if name == "own" else SPACES[name]


def rounded(value: float, space: CoordinateSpace) -> float:
    """A number as a model writes it in this space."""
    return round(value, space.decimals) if space.decimals else round(value)


def covered(medium: Media) -> TimeSpan:
    """Seconds of the file that a video or an audio shows."""
    if medium.span is not None:
        return medium.span
    return (medium.times[0], medium.times[-1]) if medium.times else (0.0, 0.0)


def cut(start: float, end: float, medium: Media, *, shortest_s: float) -> TimeSpan:
    """The part of [start, end] that lies in the medium; ToolError, with the valid range, where there is none."""
    low, high = covered(medium)
    start, end = max(start, low), min(end, high)
    if end - start < min(shortest_s, high - low):
        raise ToolError(
            f"the span must lie within {low:g} and {high:g} seconds, its start before its end, "
            f"and be at least {shortest_s:g} seconds long"
        )
    return (start, end)
