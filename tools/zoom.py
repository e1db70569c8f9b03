"""Zoom: cut a box out of an image's pixels and show it enlarged.

The conventions of published systems are fields. Qwen3-VL's cookbook: `space: relative_1000, index_key: img_idx,
label_key: label`. DeepEyes: `space: seen, index_key: null, label_key: label`. Pixel-Reasoner: `name: zoom_in, space:
relative_1, index_key: target_image, index_base: 1`. Chain-of-Focus: `enlarge: 1.5, min_pixels: 12544`. VRAG:
`index_key: null, which: last`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from mmrl.boxes import BoxArgument
from mmrl.processors.image import MAX_ASPECT, fit_size, view
from mmrl.protocols import CoordinateSpace, Observation, ToolError, ToolState
from mmrl.tools.conventions import Indexed, SpaceName, arguments_model, rounded, spoken_space
from mmrl.types import Box, CoordinateFrame, Media, Region, Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Zoom(Indexed):
    """The zoom tool. Crops of crops are cut from the original too, so that nothing is enlarged twice."""

    name: str = "image_zoom_in_tool"
    description: str = "Cut a region out of an image and look at it enlarged."
    box_key: str = "bbox_2d"
    """Name of the argument that holds the box."""
    index_key: str | None = "image"
    """Name of the argument that numbers the image; None where a call cannot say which it means."""
    label_key: str | None = None
    """Name of an argument for what is looked at, which changes nothing."""
    space: SpaceName = "own"
    """What the numbers of a box mean; "own" is the model family's convention."""
    source: Literal["original", "seen"] = "original"
    """Whose pixels are shown: the file's, or those that the model saw already."""
    enlarge: float = 1.0
    """The box grows about its centre by this factor first."""
    min_side: int = 4
    """Shortest side of a region, original pixels."""
    max_aspect: Annotated[float, Field(ge=1, le=MAX_ASPECT)] = MAX_ASPECT
    """Longest side of a region over its shortest."""
    min_pixels: int = 56 * 56
    """Pixels of the crop as the model sees it, at least."""
    max_pixels: int = 1280 * 28 * 28
    """Pixels of the crop as the model sees it, at most."""
    factor: int = 28
    """Sides of the seen crop are multiples of it: the model's patch size times its merge size."""

    @property
    def arguments(self) -> type[BaseModel]:
        box = (BoxArgument, "[x1, y1, x2, y2] of the region")
        return arguments_model(self.index_key, self.unnamed, self.label_key, **{self.box_key: box})

    def spoken(self, arguments: dict[str, Any], state: ToolState) -> dict[str, Any]:
        """A demonstrated call as the model would write it: its box, in original pixels, in the tool's space."""
        image, _ = self.pick("image", arguments, state)
        box = spoken_box(arguments[self.box_key], image, spoken_space(self.space, state))
        return {**arguments, self.box_key: box}

    async def run(self, arguments: Any, state: ToolState) -> Observation:
        """ToolError names the coordinate space and the valid extent."""
        values = arguments.model_dump()
        image, number = self.pick("image", values, state)
        space = spoken_space(self.space, state)
        box = image.frame.to_original(space.to_seen(values[self.box_key], image.frame))
        region = self._region(grown(box, self.enlarge), image, space)
        crop = self._crop(region, image, f"crop of image {number}")
        return Observation(media=(crop,), region=Region(on=image.key, box=region))

    def _region(self, asked: Box, image: Media, space: CoordinateSpace) -> Box:
        """Whole pixels of the original: the part of `asked` that lies in `image`, grown outward to full pixels."""
        width, height = image.frame.seen
        left, top, right, bottom = image.frame.to_original((0.0, 0.0, float(width), float(height)))
        x1, y1 = max(asked[0], left), max(asked[1], top)
        x2, y2 = min(asked[2], right), min(asked[3], bottom)
        extent = space.from_seen((0.0, 0.0, float(width), float(height)), image.frame)
        valid = f"it is in {space.description}, from ({extent[0]:g}, {extent[1]:g}) to ({extent[2]:g}, {extent[3]:g})"
        if x1 >= x2 or y1 >= y2:
            raise ToolError(f"{self.box_key} lies outside the image; {valid}")
        # A millionth of a pixel is rounding error of the mapping, not a request for the next pixel.
        x1, y1 = math.floor(x1 + 1e-6), math.floor(y1 + 1e-6)
        x2, y2 = math.ceil(x2 - 1e-6), math.ceil(y2 - 1e-6)
        if min(x2 - x1, y2 - y1) < self.min_side:
            raise ToolError(f"{self.box_key} is too small to show anything; {valid}")
        if max(x2 - x1, y2 - y1) > self.max_aspect * min(x2 - x1, y2 - y1):
            raise ToolError(f"{self.box_key} is too narrow: one side is over {self.max_aspect:g} times the other")
        return (float(x1), float(y1), float(x2), float(y2))

    def _crop(self, region: Box, image: Media, label: str) -> Media:
        x1, y1, x2, y2 = region
        seen = fit_size((round(x2 - x1), round(y2 - y1)), self.factor, self.min_pixels, self.max_pixels)
        return cut_out(image, region, seen, self.source, label)


def grown(box: Box, factor: float) -> Box:
    """The box, `factor` times as wide and high, about its centre."""
    x1, y1, x2, y2 = box
    dx, dy = (factor - 1) * (x2 - x1) / 2, (factor - 1) * (y2 - y1) / 2
    return (x1 - dx, y1 - dy, x2 + dx, y2 + dy)


def cut_out(image: Media, region: Box, seen: Size, source: Literal["original", "seen"], label: str) -> Media:
    """A region of original pixels, shown at size `seen`: from the file's own pixels, or from those shown already."""
    assert image.original is not None
    if source == "original":
        return view(image.original, region, seen, label=label, parent=image.key)
    x1, y1, x2, y2 = image.frame.to_seen(region)
    width, height = image.frame.seen
    inside = (
        max(math.floor(x1), 0),
        max(math.floor(y1), 0),
        min(math.ceil(x2), width),
        min(math.ceil(y2), height),
    )
    crop = view(image.data, inside, seen, label=label, parent=image.key)
    (left, top), (sx, sy) = crop.frame.offset, crop.frame.scale
    offset = image.frame.to_original((left, top, left, top))[:2]
    scale = (sx * image.frame.scale[0], sy * image.frame.scale[1])
    frame = CoordinateFrame(original=image.frame.original, seen=seen, offset=offset, scale=scale)
    return replace(crop, frame=frame, original=image.original)


def spoken_box(box: Box, image: Media, space: CoordinateSpace) -> list[float]:
    """A box in original pixels as a model writes it: rounded once, in its space, inside the image, not empty."""
    width, height = image.frame.seen
    x1, y1, x2, y2 = space.from_seen(image.frame.to_seen(box), image.frame)
    left, top, right, bottom = space.from_seen((0.0, 0.0, float(width), float(height)), image.frame)
    x1, x2 = _ordered(x1, x2, left, right, space)
    y1, y2 = _ordered(y1, y2, top, bottom, space)
    return [rounded(value, space) for value in (x1, y1, x2, y2)]


def _ordered(low: float, high: float, least: float, most: float, space: CoordinateSpace) -> tuple[float, float]:
    """The two rounded, within [least, most], at least one unit apart."""
    unit = 10.0**-space.decimals
    low = min(max(rounded(low, space), least), most - unit)
    return low, min(max(rounded(high, space), low + unit), most)
