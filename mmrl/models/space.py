"""The coordinate spaces that model families speak."""

from __future__ import annotations

from dataclasses import dataclass

from mmrl.types import Box, CoordinateFrame


@dataclass(frozen=True, slots=True)
class SeenPixels:
    """Absolute pixels of the image as the model sees it (Qwen2.5-VL)."""

    description: str = "absolute pixels of the image as shown"

    def to_seen(self, box: Box, frame: CoordinateFrame) -> Box:
        return box

    def from_seen(self, box: Box, frame: CoordinateFrame) -> Box:
        return box
