"""Crop an audio: hear a span of it again by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mmrl.processors.audio import Audio
from mmrl.tools.span import SpanTool
from mmrl.types import MediaKind


@dataclass(frozen=True, slots=True, kw_only=True)
class CropAudio(SpanTool):
    """Plays a span of an audio, cut anew from the file."""

    kind: ClassVar[MediaKind] = "audio"

    name: str = "crop_audio"
    description: str = "Hear a part of an audio again."
    audio: Audio = field(default_factory=Audio)
    """How the span is loaded."""

    @property
    def processor(self) -> Audio:
        return self.audio
