"""Select frames: look at single frames of a video at their full resolution.

Pixel-Reasoner's convention (arXiv 2505.15966): `frames_key: target_frames, index_base: 1, most: 8`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictInt

from mmrl.errors import MediaError
from mmrl.processors.video import Video
from mmrl.protocols import Observation, ToolError, ToolState
from mmrl.tools.conventions import Indexed, Positive, arguments_model
from mmrl.types import Region


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectFrames(Indexed):
    """Frames by their number among those that the model was shown."""

    name: str = "select_frames"
    description: str = "Look closely at some frames of a video."
    frames_key: str = "target_frames"
    """Name of the argument that lists the frames."""
    index_base: Literal[0, 1] = 1
    """Number of the first frame, and of the first video."""
    most: Positive = 8
    """Frames of a call."""
    video: Video = field(default_factory=Video)
    """How frames are shown: `min_pixels`, `max_pixels`, `factor`."""

    @property
    def arguments(self) -> type[BaseModel]:
        kind = Annotated[list[StrictInt], Field(min_length=1, max_length=self.most)]
        text = f"numbers of the frames, from {self.index_base}; at most {self.most}"
        return arguments_model(self.index_key, self.unnamed, None, **{self.frames_key: (kind, text)})

    async def run(self, arguments: Any, state: ToolState) -> Observation:
        values = arguments.model_dump()
        video, _ = self.pick("video", values, state)
        last = self.index_base + len(video.times) - 1
        if not all(self.index_base <= frame <= last for frame in values[self.frames_key]):
            raise ToolError(f"{self.frames_key} must lie between {self.index_base} and {last}")
        times = tuple(sorted({video.times[frame - self.index_base] for frame in values[self.frames_key]}))
        if video.source is None:
            raise ToolError("this video has no file to look closer at")
        try:
            stills = await asyncio.to_thread(self.video.stills, video.source, times)
        except MediaError as error:
            raise ToolError("these frames cannot be decoded") from error
        media = tuple(replace(still, parent=video.key) for still in stills)
        return Observation(media=media, region=Region(on=video.key, times=times))
