"""The coordinate spaces that model families speak."""

from __future__ import annotations

from dataclasses import dataclass

from mmrl.types import Box, CoordinateFrame


@dataclass(frozen=True, slots=True)
class SeenPixels:
    """Absolute pixels of the image as the model sees it (Qwen2.5-VL)."""

    description: str = "absolute pixels of the image as shown"
    decimals: int = 0

    def to_seen(self, box: Box, frame: CoordinateFrame) -> Box:
        return box

    def from_seen(self, box: Box, frame: CoordinateFrame) -> Box:
        return box


@dataclass(frozen=True, slots=True)
class OriginalPixels:
    """Pixels of the file, whatever size the model sees (the convention of VLM-R1's data)."""

    description: str = "pixels of the original image"
    decimals: int = 0

    def to_seen(self, box: Box, frame: CoordinateFrame) -> Box:
        return frame.to_seen(box)

    def from_seen(self, box: Box, frame: CoordinateFrame) -> Box:
        return frame.to_original(box)


@dataclass(frozen=True, slots=True)
class Relative:
    """Shares of the image's width and height, times `extent`: 1000 for Qwen2-VL and Qwen3-VL, 1 for Pixel-Reasoner."""

    extent: float = 1000.0

    @property
    def decimals(self) -> int:
        return 0 if self.extent >= 100 else 3

    @property
    def description(self) -> str:
        return f"relative to the image, {self.extent:g} being its full width or height"

    def to_seen(self, box: Box, frame: CoordinateFrame) -> Box:
        return _scaled(box, frame.seen[0] / self.extent, frame.seen[1] / self.extent)

    def from_seen(self, box: Box, frame: CoordinateFrame) -> Box:
        return _scaled(box, self.extent / frame.seen[0], self.extent / frame.seen[1])


SPACES: dict[str, SeenPixels | OriginalPixels | Relative] = {
    "seen": SeenPixels(),
    "original": OriginalPixels(),
    "relative_1000": Relative(),
    "relative_1": Relative(1.0),
}
"""The spaces that a tool may be configured to speak, where it differs from its model's own."""


def _scaled(box: Box, x: float, y: float) -> Box:
    return (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
