"""Qwen2.5-Omni's thinker: images, video and audio in one prompt; a video may be heard while it is seen.

Video and sound are cut into chunks of two seconds that take turns, and their positions count from one origin
(Qwen2.5-Omni, arXiv 2503.20215, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mmrl.models.audio import log_mel, mel_length, num_tokens
from mmrl.models.chatml import chat_template
from mmrl.models.qwen2_vl import Qwen25VL
from mmrl.models.text import Control, Piece, Slot
from mmrl.models.vision import Patching
from mmrl.types import Media, MediaSpan, Part, Tokens

PADS = {"image": "<|IMAGE|>", "video": "<|VIDEO|>", "audio": "<|AUDIO|>"}
VISION_START, VISION_END = "<|vision_bos|>", "<|vision_eos|>"
AUDIO_START, AUDIO_END = "<|audio_bos|>", "<|audio_eos|>"


class Qwen25Omni(Qwen25VL):
    """The thinker. Checkpoints hold it inside the Omni configuration."""

    hears_video = True
    controls = (VISION_START, VISION_END, AUDIO_START, AUDIO_END, *PADS.values())
    chat_template = chat_template(
        {
            "image": f"{VISION_START}{PADS['image']}{VISION_END}",
            "video": f"{VISION_START}{PADS['video']}{VISION_END}",
            "audio": f"{AUDIO_START}{PADS['audio']}{AUDIO_END}",
        }
    )

    def __init__(
        self, tokenizer: Any, *, patching: Patching, extractor: Any, positions_per_second: float, chunk_s: float
    ) -> None:
        super().__init__(tokenizer, patching=patching, positions_per_second=positions_per_second)
        self.extractor, self.positions_per_chunk = extractor, int(positions_per_second * chunk_s)

    @classmethod
    def from_config(cls, config: Any, processor: Any) -> Qwen25Omni:
        vision = config.vision_config
        return cls(
            processor.tokenizer,
            patching=Patching(
                patch=vision.patch_size, merge=vision.spatial_merge_size, temporal=vision.temporal_patch_size
            ),
            extractor=processor.feature_extractor,
            positions_per_second=config.position_id_per_seconds,
            chunk_s=config.seconds_per_chunk,
        )

    def text_model(self, model: Any) -> Any:
        return model.model

    def towers(self, model: Any) -> list[torch.nn.Module]:
        return [model.visual, model.audio_tower]

    def parts(self, medium: Media) -> tuple[Media, ...]:
        return (medium,) if medium.kind == "audio" else super().parts(medium)

    def tower_tokens(self, part: Media) -> int:
        return num_tokens(mel_length(part)) if part.kind == "audio" else super().tower_tokens(part)

    def media_settings(self) -> str:
        return f"{super().media_settings()} {self.extractor!r}"

    def place(self, part: Part, media: Sequence[Media]) -> list[Piece]:
        assert part.media is not None
        medium = media[part.media]
        if part.sound is not None:
            return self._interleaved(medium, media[part.sound])
        if medium.kind == "audio":
            return [Control(AUDIO_START), self.slot(medium), Control(AUDIO_END)]
        return [Control(VISION_START), self.slot(medium), Control(VISION_END)]

    def slot(self, medium: Media) -> Slot:
        if medium.kind == "audio":
            span = MediaSpan(key=medium.key, start=0, length=num_tokens(mel_length(medium)), grid=None)
        else:
            span = super().slot(medium).span
        return Slot(PADS[medium.kind], span)

    def positions(self, tokens: Tokens) -> np.ndarray:
        """The two tokens that open a heard video share a position, and so do the two that close it."""
        positions = super().positions(tokens)
        for first, last in _heard(tokens.spans):
            opening, closing = first.start - 1, last.start + last.length
            positions[:, opening:] -= 1
            positions[:, closing + 1 :] -= 1
        return positions

    def encode_media(self, model: Any, media: Sequence[Media]) -> list[torch.Tensor]:
        """(tokens, D) features of each medium; one pass through each tower."""
        seen = [medium for medium in media if medium.kind != "audio"]
        heard = [medium for medium in media if medium.kind == "audio"]
        features = dict(zip(map(id, seen), super().encode_media(model, seen), strict=True))
        features |= dict(zip(map(id, heard), self._encode_audio(model, heard), strict=True))
        return [features[id(medium)] for medium in media]

    def _encode_audio(self, model: Any, media: Sequence[Media]) -> list[torch.Tensor]:
        if not media:
            return []
        mels = [log_mel(self.extractor, medium) for medium in media]
        lengths = torch.tensor([mel.shape[1] for mel in mels], device=model.device)
        joined = torch.cat(mels, dim=1).to(model.device, model.dtype)
        hidden = model.audio_tower(joined, feature_lens=lengths, aftercnn_lens=(lengths - 1) // 2 + 1)
        return list(hidden.last_hidden_state.split([num_tokens(mel.shape[1]) for mel in mels]))

    def _interleaved(self, video: Media, sound: Media) -> list[Piece]:
        """Chunks of video and sound in turn, each as long as `positions_per_chunk`."""
        seen, heard = self.slot(video), self.slot(sound)
        assert seen.span.grid is not None
        t, h, w = seen.span.grid
        step_chunk = (np.arange(t) * seen.span.step).astype(np.int64) // self.positions_per_chunk
        token_chunk = np.arange(heard.span.length) // self.positions_per_chunk
        slots: list[Slot] = []
        for chunk in range(int(max(step_chunk.max(), token_chunk.max(initial=0))) + 1):
            steps, tokens = np.flatnonzero(step_chunk == chunk), np.flatnonzero(token_chunk == chunk)
            if len(steps):
                slots.append(_piece(seen, int(steps[0]) * h * w, len(steps) * h * w, (len(steps), h, w)))
            if len(tokens):
                slots.append(_piece(heard, int(tokens[0]), len(tokens), None))
        slots[1:] = [Slot(slot.token, replace(slot.span, joined=True)) for slot in slots[1:]]
        return [Control(VISION_START), Control(AUDIO_START), *slots, Control(AUDIO_END), Control(VISION_END)]


def _piece(slot: Slot, offset: int, length: int, grid: tuple[int, int, int] | None) -> Slot:
    return Slot(slot.token, replace(slot.span, offset=offset, length=length, grid=grid))


def _heard(spans: Sequence[MediaSpan]) -> list[tuple[MediaSpan, MediaSpan]]:
    """(first, last) span of every video that is shown with its sound."""
    blocks: list[tuple[MediaSpan, MediaSpan]] = []
    for before, span in zip(spans, spans[1:], strict=False):
        if span.joined:
            blocks = [*blocks[:-1], (blocks[-1][0], span)] if before.joined else [*blocks, (before, span)]
    return blocks
