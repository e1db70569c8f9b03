"""Qwen3-VL and Qwen3.5: the time of every step of a video stands in the text, and positions count frames as images.

Qwen3-VL adds features from inside the vision tower to the first layers of the text model (DeepStack, arXiv
2406.04334): they ride behind the ordinary features, (tokens, D * (1 + levels)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmrl.models.embed import Embedded
from mmrl.models.qwen2_vl import PADS, VISION_END, VISION_START, Qwen25VL
from mmrl.models.qwen_xml import QwenXml
from mmrl.models.space import Relative
from mmrl.models.text import Control, Piece, Slot
from mmrl.models.vision import Patching
from mmrl.types import Media, MediaSpan, Part

HALF = (0.5, 0.5, 0.5)
THINK = "<think>"


class Qwen3VL(Qwen25VL):
    """Qwen3-VL: DeepStack features; boxes are relative to 1000."""

    def __init__(self, tokenizer: Any, *, patching: Patching) -> None:
        super().__init__(tokenizer, patching=patching, positions_per_second=None)
        self.space = Relative()

    @classmethod
    def from_config(cls, config: Any, processor: Any) -> Qwen3VL:
        vision = config.vision_config
        patching = Patching(
            patch=vision.patch_size,
            merge=vision.spatial_merge_size,
            temporal=vision.temporal_patch_size,
            mean=HALF,
            std=HALF,
        )
        return cls(processor.tokenizer, patching=patching)

    def place(self, part: Part, media: Sequence[Media]) -> list[Piece]:
        assert part.media is not None
        medium = media[part.media]
        if medium.kind != "video":
            return super().place(part, media)
        pieces: list[Piece] = []
        _, h, w = self.grid(medium)
        for number, time in enumerate(self.patching.step_times(medium)):
            span = MediaSpan(key=medium.key, start=0, length=h * w, grid=(1, h, w), offset=number * h * w)
            pieces += [f"<{time:.1f} seconds>", Control(VISION_START), Slot(PADS["video"], span), Control(VISION_END)]
        return pieces

    def masks(self, mask: torch.Tensor | None, valid_BT: torch.Tensor | None) -> Any:
        return mask

    def text_inputs(self, inputs: Embedded) -> dict[str, Any]:
        deep = {"visual_pos_masks": inputs.media_BT, "deepstack_visual_embeds": list(inputs.deep_LMD) or None}
        return super().text_inputs(inputs) | deep

    def encode_media(self, model: Any, media: Sequence[Media]) -> list[torch.Tensor]:
        if not media:
            return []
        output = self.tower_output(model, media)
        sizes = [len(features) for features in output.pooler_output]
        # transformers up to 5.17 leaves the levels of all media in one tensor.
        deep = [level.split(sizes) if torch.is_tensor(level) else level for level in output.deepstack_features]
        return [torch.cat(features, dim=1) for features in zip(output.pooler_output, *deep, strict=True)]


class Qwen35(Qwen3VL):
    """Qwen3.5: no DeepStack, calls as XML, and recurrent layers in the text model."""

    recurrent: bool = True
    opening: str = "<think>\n"
    chat_template = ""  # its own knows tools; but it drops earlier turns' thoughts, which training must keep

    def __init__(self, tokenizer: Any, *, patching: Patching) -> None:
        super().__init__(tokenizer, patching=patching)
        self.codec = QwenXml()

    def behind_opening(self, text: str) -> str:
        """The thought that the header opens; a turn without one closes it at once."""
        if text.startswith(THINK):
            return text.removeprefix(THINK).lstrip()
        return f"\n</think>\n\n{text}"

    def masks(self, mask: torch.Tensor | None, valid_BT: torch.Tensor | None) -> Any:
        # One token at a time is never padding; padding on the right is never looked back at.
        return {"full_attention": mask, "linear_attention": None if valid_BT is None else valid_BT.long()}

    def text_inputs(self, inputs: Embedded) -> dict[str, Any]:
        return Qwen25VL.text_inputs(self, inputs)

    def encode_media(self, model: Any, media: Sequence[Media]) -> list[torch.Tensor]:
        return Qwen25VL.encode_media(self, model, media)
