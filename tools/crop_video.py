"""Crop a video: look at a span of it again, at frames that lie closer together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mmrl.processors.video import Video
from mmrl.tools.span import SpanTool
from mmrl.types import MediaKind


@dataclass(frozen=True, slots=True, kw_only=True)
class CropVideo(SpanTool):
    """Shows a span of a video, sampled anew from the file."""

    kind: ClassVar[MediaKind] = "video"

    name: str = "crop_video"
    description: str = "Look at a part of a video again, at more frames a second."
    video: Video = field(default_factory=lambda: Video(fps=4.0, max_frames=32))
    """How the span is shown: frames a second or their number, pixels of a frame."""

    @property
    def processor(self) -> Video:
        return self.video
