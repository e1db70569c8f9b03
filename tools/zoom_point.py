"""Zoom by point: show the square of original pixels around a point that the model names (ViGoRL, arXiv 2505.23678).

ViGoRL's settings: visual search `half_side: 182, side: 672`; screens `half_side: 50, side: 384, dot: 7`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw
from pydantic import BaseModel, BeforeValidator, Field

from mmrl.processors.image import fit_size, view
from mmrl.protocols import Observation, ToolError, ToolState
from mmrl.tools.conventions import Indexed, Positive, SpaceName, arguments_model, rounded, spoken_space
from mmrl.types import Box, Media, Point, Region

RED = (255, 0, 0)


def _numbers(value: object) -> object:
    if not isinstance(value, (list, tuple)) or any(type(v) not in (int, float) for v in value):
        raise ValueError("must be a list of two numbers [x, y]")
    return value


_Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
PointArgument = Annotated[tuple[_Finite, _Finite], BeforeValidator(_numbers, json_schema_input_type=list[float])]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoomPoint(Indexed):
    """Shows the surroundings of a point, cut from the file's pixels."""

    name: str = "search_coordinate"
    description: str = "Look closely at the surroundings of a point of an image."
    point_key: str = "coordinate"
    """Name of the argument that holds the point."""
    space: SpaceName = "own"
    """What the numbers of a point mean; "own" is the model family's convention."""
    half_side: Positive = 182
    """From the point to the sides of the square, original pixels."""
    side: Positive = 672
    """Longest side of the square as the model sees it, pixels."""
    dot: Annotated[int, Field(ge=0)] = 0
    """Radius of a red dot that is drawn on the point, original pixels; 0 draws none."""
    factor: int = 28
    """Sides of the seen square are multiples of it: the model's patch size times its merge size."""

    @property
    def arguments(self) -> type[BaseModel]:
        return arguments_model(
            self.index_key, self.unnamed, None, **{self.point_key: (PointArgument, "[x, y] of the point")}
        )

    def spoken(self, arguments: dict[str, Any], state: ToolState) -> dict[str, Any]:
        """A demonstrated call as the model would write it: its point, in original pixels, in the tool's space."""
        image, _ = self.pick("image", arguments, state)
        space = spoken_space(self.space, state)
        x, y = arguments[self.point_key]
        x, y, _, _ = space.from_seen(image.frame.to_seen((x, y, x, y)), image.frame)
        return {**arguments, self.point_key: [rounded(x, space), rounded(y, space)]}

    async def run(self, arguments: Any, state: ToolState) -> Observation:
        values = arguments.model_dump()
        image, number = self.pick("image", values, state)
        x, y = values[self.point_key]
        seen = spoken_space(self.space, state).to_seen((x, y, x, y), image.frame)
        point = image.frame.to_original(seen)[:2]
        region = self._square(point, image)
        assert image.original is not None
        pixels = dotted(image.original, point, self.dot) if self.dot else image.original
        size = (round(region[2] - region[0]), round(region[3] - region[1]))
        shown = fit_size(size, self.factor, 0, self._pixels(size))
        crop = view(pixels, region, shown, label=f"around a point of image {number}", parent=image.key)
        return Observation(media=(crop,), region=Region(on=image.key, box=region))

    def _square(self, point: Point, image: Media) -> Box:
        """Whole original pixels around the point, clipped to the image."""
        width, height = image.frame.seen
        left, top, right, bottom = image.frame.to_original((0.0, 0.0, float(width), float(height)))
        if not (left <= point[0] < right and top <= point[1] < bottom):
            raise ToolError(f"{self.point_key} lies outside the image")
        x, y = round(point[0]), round(point[1])
        box = (max(x - self.half_side, left), max(y - self.half_side, top))
        far = (min(x + self.half_side, right), min(y + self.half_side, bottom))
        return (float(int(box[0])), float(int(box[1])), float(round(far[0])), float(round(far[1])))

    def _pixels(self, size: tuple[int, int]) -> int:
        """Pixels of a picture of this shape whose longest side is `side`."""
        return round(self.side * self.side * min(size) / max(size))


def dotted(pixels: np.ndarray, point: Point, radius: int) -> np.ndarray:
    """A copy with a red dot."""
    picture = Pillow.fromarray(pixels)
    x, y = point
    ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill=RED)
    return np.asarray(picture)
