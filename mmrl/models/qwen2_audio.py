"""Qwen2-Audio: sound between audio tokens, padded to 30 s for its tower; one position a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmrl.models.audio import HOP, mel_length, num_tokens
from mmrl.models.chatml import ChatML, chat_template
from mmrl.models.embed import Embedded
from mmrl.models.text import Control, Piece, Slot
from mmrl.types import SAMPLE_RATE, Media, MediaSpan, Part

AUDIO, AUDIO_START, AUDIO_END = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"


class Qwen2Audio(ChatML):
    """Sound and text; clips of 30 s at most."""

    controls = (AUDIO_START, AUDIO, AUDIO_END)
    chat_template = chat_template({"audio": f"{AUDIO_START}{AUDIO}{AUDIO_END}"})

    def __init__(self, tokenizer: Any, *, extractor: Any, max_mel: int) -> None:
        super().__init__(tokenizer)
        self.extractor, self.max_mel = extractor, max_mel

    @classmethod
    def from_config(cls, config: Any, processor: Any) -> Qwen2Audio:
        extractor = processor.feature_extractor
        return cls(processor.tokenizer, extractor=extractor, max_mel=2 * config.audio_config.max_source_positions)

    def place(self, part: Part, media: Sequence[Media]) -> list[Piece]:
        assert part.media is not None
        medium = media[part.media]
        frames = mel_length(medium)
        if medium.kind != "audio":
            raise ValueError(f"{medium.label}: this model takes audio only, not a {medium.kind}")
        if frames > self.max_mel:
            raise ValueError(f"{medium.label}: at most {self.max_mel / 100:g} s of audio; cut the clip")
        span = MediaSpan(key=medium.key, start=0, length=num_tokens(frames), grid=None)
        return [Control(AUDIO_START), Slot(AUDIO, span), Control(AUDIO_END)]

    def towers(self, model: Any) -> list[torch.nn.Module]:
        return [model.model.audio_tower, model.model.multi_modal_projector]

    def tower_tokens(self, part: Media) -> int:
        return num_tokens(self.max_mel)

    def media_settings(self) -> str:
        return f"{self.max_mel} {self.extractor!r}"

    def text_inputs(self, inputs: Embedded) -> dict[str, Any]:
        return {"position_ids": inputs.positions_3BT[0]}

    def encode_media(self, model: Any, media: Sequence[Media]) -> list[torch.Tensor]:
        """(tokens, D) features of each audio. The tower sees 30 s, of which what lies behind the sound is masked."""
        if not media:
            return []
        inputs = self.extractor(
            [medium.data for medium in media],
            sampling_rate=SAMPLE_RATE,
            padding="max_length",
            max_length=self.max_mel * HOP,
            return_tensors="pt",
        )
        heard = torch.tensor([(mel_length(medium) - 1) // 2 + 1 for medium in media])
        mask = (torch.arange(self.max_mel // 2) < heard[:, None])[:, None, None, :].to(model.device)
        tower, project = self.towers(model)
        hidden = tower(inputs.input_features.to(model.device, model.dtype), attention_mask=mask).last_hidden_state
        features = project(hidden)
        return [row[: num_tokens(mel_length(medium))] for row, medium in zip(features, media, strict=True)]
