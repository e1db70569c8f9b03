"""Zoom: cut a box out of an image's original pixels and show it enlarged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from mmrl.boxes import BoxArgument
from mmrl.processors.image import fit_size, view
from mmrl.protocols import Observation, ToolError, ToolState
from mmrl.types import Box, Media, Region


class ZoomArguments(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    bbox_2d: BoxArgument = Field(description="[x1, y1, x2, y2] of the region")
    image: StrictInt = Field(default=0, description="number of the image, from 0, in the order shown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Zoom:
    """The zoom tool. Crops of crops are cut from the original too, so that nothing is enlarged twice."""

    name: str = "image_zoom_in_tool"
    description: str = "Cut a region out of an image and look at it enlarged."
    min_side: int = 4
    """Shortest side of a region, original pixels."""
    min_pixels: int = 56 * 56
    """Pixels of the crop as the model sees it, at least."""
    max_pixels: int = 1280 * 28 * 28
    """Pixels of the crop as the model sees it, at most."""
    factor: int = 28
    """Sides of the seen crop are multiples of it: the model's patch size times its merge size."""

    arguments: ClassVar[type[BaseModel]] = ZoomArguments

    async def run(self, arguments: ZoomArguments, state: ToolState) -> Observation:
        """ToolError names the coordinate space and the valid extent."""
        image = self._image(arguments.image, state)
        asked = image.frame.to_original(state.space.to_seen(arguments.bbox_2d, image.frame))
        region = self._region(asked, image, state)
        x1, y1, x2, y2 = region
        try:
            seen = fit_size((round(x2 - x1), round(y2 - y1)), self.factor, self.min_pixels, self.max_pixels)
        except ValueError as error:
            raise ToolError(f"the region of {error}") from None
        label = f"crop of image {arguments.image}"
        assert image.original is not None
        crop = view(image.original, region, seen, label=label, parent=image.key)
        return Observation(media=(crop,), region=Region(on=image.key, box=region))

    def _image(self, index: int, state: ToolState) -> Media:
        if not state.media:
            raise ToolError("there is no image to look at")
        if not 0 <= index < len(state.media):
            raise ToolError(f"image must be between 0 and {len(state.media) - 1}")
        return state.media[index]

    def _region(self, asked: Box, image: Media, state: ToolState) -> Box:
        """Whole pixels of the original: the part of `asked` that lies in `image`, grown outward to full pixels."""
        width, height = image.frame.seen
        left, top, right, bottom = image.frame.to_original((0.0, 0.0, float(width), float(height)))
        x1, y1 = max(asked[0], left), max(asked[1], top)
        x2, y2 = min(asked[2], right), min(asked[3], bottom)
        extent = state.space.from_seen((0.0, 0.0, float(width), float(height)), image.frame)
        if x1 >= x2 or y1 >= y2:
            raise ToolError(f"bbox_2d lies outside the image; {describe_space(state, extent)}")
        # A millionth of a pixel is rounding error of the mapping, not a request for the next pixel.
        x1, y1 = math.floor(x1 + 1e-6), math.floor(y1 + 1e-6)
        x2, y2 = math.ceil(x2 - 1e-6), math.ceil(y2 - 1e-6)
        if min(x2 - x1, y2 - y1) < self.min_side:
            raise ToolError(f"bbox_2d is too small to show anything; {describe_space(state, extent)}")
        return (float(x1), float(y1), float(x2), float(y2))


def describe_space(state: ToolState, extent: Box) -> str:
    return f"it is in {state.space.description}, from ({extent[0]:g}, {extent[1]:g}) to ({extent[2]:g}, {extent[3]:g})"
