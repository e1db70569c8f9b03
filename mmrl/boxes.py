"""Boxes from outside: the argument type that tools share, and the check that precedes any use of a box."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from mmrl.types import Box, Size

ROUNDING_PX = 1e-3
"""What mapping a place to original pixels may lose; a place that is out by less is not out."""


def _numbers(value: object) -> object:
    if not isinstance(value, (list, tuple)) or any(type(v) not in (int, float) for v in value):
        raise ValueError("must be a list of four numbers [x1, y1, x2, y2]")
    return value


def _ordered(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    if not (x1 < x2 and y1 < y2):
        raise ValueError("must have x1 < x2 and y1 < y2")
    return box


_Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
BoxArgument = Annotated[
    tuple[_Finite, _Finite, _Finite, _Finite],
    BeforeValidator(_numbers, json_schema_input_type=list[float]),
    AfterValidator(_ordered),
]
"""[x1, y1, x2, y2] in the family's space: four finite numbers, no strings or booleans, ordered."""


def valid_box(box: Box, size: Size) -> tuple[Box | None, str]:
    """(box clipped to an image of `size`, "") or (None, why it covers nothing of it)."""
    x1, y1, x2, y2 = box
    if not all(math.isfinite(v) for v in box):
        return None, "the box is not finite"
    if not _has_area(box):
        return None, "the box is inverted or has no area"
    width, height = size
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if not _has_area(clipped):
        return None, "the box lies outside the image"
    return clipped, ""


def was_clipped(box: Box, inside: Box) -> bool:
    """Whether `valid_box` cut off more than rounding."""
    return any(abs(before - after) > ROUNDING_PX for before, after in zip(box, inside, strict=True))


def _has_area(box: Box) -> bool:
    x1, y1, x2, y2 = box
    return x1 < x2 and y1 < y2 and (x2 - x1) * (y2 - y1) > 0  # the area of a box of 1e-200 pixels is 0
