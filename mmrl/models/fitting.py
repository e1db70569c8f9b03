"""Processors and tools that show pictures at sizes which a family's vision tower can take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from mmrl.protocols import ModelFamily

T = TypeVar("T")


def fitted(made: T, fields: Mapping[str, Any], family: ModelFamily) -> T:
    """`made` with sides in multiples of what the tower merges into a token, and frames in multiples of its steps.

    Args:
        made: a processor or a tool; what is no dataclass, or has no such fields, stays as it is.
        fields: what the configuration says: its `factor` and `temporal` are kept.
    """
    patching = getattr(family, "patching", None)
    if patching is None or not dataclasses.is_dataclass(made) or isinstance(made, type):
        return made
    wanted = {"factor": patching.patch * patching.merge, "temporal": patching.temporal}
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        if field.name in wanted and field.name not in fields:
            changes[field.name] = wanted[field.name]
        elif dataclasses.is_dataclass(value):
            changes[field.name] = fitted(value, fields.get(field.name) or {}, family)
    return dataclasses.replace(made, **changes)
