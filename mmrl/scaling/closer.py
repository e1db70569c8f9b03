"""Processors that look more closely."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmrl.errors import ConfigError
from mmrl.protocols import Processor
from mmrl.resolve import suggest
from mmrl.scaling.strategy import Fields
from mmrl.types import Media, MediaKind, MediaRef


def closer(processors: Mapping[MediaKind, Processor], fields: Fields) -> dict[MediaKind, Processor]:
    """The processors, by kind of medium, with the fields of a look replaced; ConfigError for what cannot be."""
    return {**processors, **{kind: _replaced(processors, kind, values) for kind, values in fields.items()}}


def _replaced(processors: Mapping[MediaKind, Processor], kind: MediaKind, values: Mapping[str, Any]) -> Processor:
    processor: Any = processors.get(kind)
    if not dataclasses.is_dataclass(processor) or isinstance(processor, type):
        raise ConfigError(f"the strategy changes how a {kind} is loaded, but no dataclass loads one; see data.{kind}")
    known = [field.name for field in dataclasses.fields(processor)]
    for name in values:
        if name not in known:
            raise ConfigError(
                f"the strategy sets {name!r} of data.{kind}, but {type(processor).__name__} has no such field"
                f"{suggest(name, known)}"
            )
    try:
        looking: Any = dataclasses.replace(processor, **values)
    except ValueError as error:
        raise ConfigError(f"the strategy's look at a {kind} is refused: {error}") from None
    return _Whatever(looking) if "frames" in values else looking


@dataclasses.dataclass(frozen=True, slots=True)
class _Whatever:
    """Shows as many frames as the look says, whatever the row itself asks for."""

    processor: Processor

    def load(self, ref: MediaRef) -> Media:
        return self.processor.load(dataclasses.replace(ref, frames=None))
