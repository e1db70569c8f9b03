"""What tools that look at a part of a video or an audio again have in common.

LongVT's convention (arXiv 2511.20785) is the default: `start_time` and `end_time` in seconds of the file.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import BaseModel

from mmrl.cache.media import SHARED
from mmrl.errors import MediaError
from mmrl.protocols import Observation, Processor, ToolError, ToolState
from mmrl.tools.conventions import Indexed, Seconds, arguments_model, cut
from mmrl.types import Media, MediaKind, Region


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanTool(Indexed):
    """Loads a span of a medium anew from its file."""

    kind: ClassVar[MediaKind]

    start_key: str = "start_time"
    end_key: str = "end_time"
    """Names of the arguments, seconds of the file."""
    shortest_s: float = 0.1
    """Shortest span, seconds."""

    @property
    def processor(self) -> Processor:
        raise NotImplementedError

    @property
    def arguments(self) -> type[BaseModel]:
        start, end = (Seconds, "where the span starts, seconds"), (Seconds, "where it ends, seconds")
        return arguments_model(self.index_key, self.unnamed, None, **{self.start_key: start, self.end_key: end})

    async def run(self, arguments: Any, state: ToolState) -> Observation:
        """ToolError names the valid seconds."""
        values = arguments.model_dump()
        medium, number = self.pick(self.kind, values, state)
        span = cut(values[self.start_key], values[self.end_key], medium, shortest_s=self.shortest_s)
        part = await asyncio.to_thread(self._load, medium, span)
        label = f"{self.kind} {number}, {span[0]:g} s to {span[1]:g} s"
        parent = medium.key if part.key != medium.key else medium.parent  # all of a medium is the medium itself
        part = replace(part, parent=parent, label=label)
        return Observation(media=(part,), region=Region(on=medium.key, span=span))

    def _load(self, medium: Media, span: tuple[float, float]) -> Media:
        if medium.source is None:
            raise ToolError(f"this {self.kind} has no file to look closer at")
        try:
            return SHARED.load(self.processor, replace(medium.source, span=span))
        except MediaError as error:
            raise ToolError(f"this part of the {self.kind} cannot be decoded") from error
