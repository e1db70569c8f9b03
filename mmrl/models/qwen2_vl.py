"""Qwen2-VL and Qwen2.5-VL: images and videos between vision tokens, features from one vision tower."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from mmrl.models.chatml import ChatML, chat_template
from mmrl.models.space import Relative
from mmrl.models.text import Control, Piece, Slot
from mmrl.models.vision import Patching
from mmrl.types import Media, MediaSpan, Part

VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
PADS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}


class Qwen25VL(ChatML):
    """Qwen2.5-VL: time counts in positions, boxes are absolute pixels of the picture as shown."""

    blockwise = True
    controls = (VISION_START, VISION_END, "<|vision_pad|>", *PADS.values())
    chat_template = chat_template({kind: f"{VISION_START}{pad}{VISION_END}" for kind, pad in PADS.items()})

    def __init__(self, tokenizer: Any, *, patching: Patching, positions_per_second: float | None) -> None:
        super().__init__(tokenizer)
        self.patching, self.positions_per_second = patching, positions_per_second

    @classmethod
    def from_config(cls, config: Any, processor: Any) -> Qwen25VL:
        vision = config.vision_config
        patching = Patching(
            patch=vision.patch_size, merge=vision.spatial_merge_size, temporal=vision.temporal_patch_size
        )
        return cls(
            processor.tokenizer, patching=patching, positions_per_second=getattr(vision, "tokens_per_second", None)
        )

    def grid(self, medium: Media) -> tuple[int, int, int]:
        return self.patching.grid(medium)

    def parts(self, medium: Media) -> tuple[Media, ...]:
        return self.patching.steps(medium)

    def tower_tokens(self, part: Media) -> int:
        return math.prod(self.grid(part))

    def media_settings(self) -> str:
        return repr(self.patching)

    def place(self, part: Part, media: Sequence[Media]) -> list[Piece]:
        assert part.media is not None
        medium = media[part.media]
        return [Control(VISION_START), self.slot(medium), Control(VISION_END)]

    def slot(self, medium: Media) -> Slot:
        if medium.kind not in ("image", "video"):
            raise ValueError(f"{medium.label}: this model takes no {medium.kind}")
        t, h, w = self.grid(medium)
        step = 1.0
        if medium.kind == "video" and self.positions_per_second is not None:
            step = self.positions_per_second * self.patching.seconds_per_step(medium)
        return Slot(PADS[medium.kind], MediaSpan(key=medium.key, start=0, length=t * h * w, grid=(t, h, w), step=step))

    def encode_media(self, model: Any, media: Sequence[Media]) -> list[torch.Tensor]:
        """(tokens, D) features of each image or video; one pass through the vision tower."""
        return list(self.tower_output(model, media).pooler_output) if media else []

    def tower_output(self, model: Any, media: Sequence[Media]) -> Any:
        device, merge = model.device, self.patching.merge
        patches = torch.cat([self.patching.rows(medium) for medium in media]).to(device, model.dtype)
        sizes = [self.grid(medium) for medium in media]
        grids = torch.tensor([(t, h * merge, w * merge) for t, h, w in sizes], device=device)
        return model.get_image_features(patches, image_grid_thw=grids, return_dict=True)


class Qwen2VL(Qwen25VL):
    """Qwen2-VL: a step in time is one position, boxes are relative to 1000."""

    def __init__(self, tokenizer: Any, *, patching: Patching, positions_per_second: float | None) -> None:
        del positions_per_second
        super().__init__(tokenizer, patching=patching, positions_per_second=None)
        self.space = Relative()
