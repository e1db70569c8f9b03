"""Qwen2.5-VL: prompts, positions, image features, coordinates and tool calls.

The checkpoint's own chat template knows no tools (it ignores them), so the template here is ours: the same roles and
vision tokens, with Hermes-style calls. `CHAT_TEMPLATE` is the same text as Jinja, exported with every checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmrl.models.hermes import Hermes, tools_prompt
from mmrl.models.mrope import mrope_positions
from mmrl.models.space import SeenPixels
from mmrl.models.text import Control, Piece, control_id, encode_pieces, encode_text
from mmrl.protocols import CoordinateSpace, Tool, ToolCodec
from mmrl.types import Media, MediaSpan, Message, Tokens

START, END = Control("<|im_start|>"), Control("<|im_end|>")
VISION_START, VISION_END = Control("<|vision_start|>"), Control("<|vision_end|>")
IMAGE_PAD = "<|image_pad|>"
RESERVED = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", IMAGE_PAD, "<|video_pad|>")
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

CHAT_TEMPLATE = r"""
{%- macro body(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {{- '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text -}}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set system = body(messages[0].content) if messages and messages[0].role == 'system' else '' -%}
{%- if system or tools -%}
  {{- '<|im_start|>system\n' + system -}}
  {%- if tools -%}
    {{- '\n\n# Tools\n\nThese functions can be called while answering:\n<tools>\n' -}}
    {%- for tool in tools -%}
      {{- tool | tojson + '\n' -}}
    {%- endfor -%}
    {{- '</tools>\n\nTo call one, write its name and arguments as JSON:\n<tool_call>\n' -}}
    {{- '{"name": ..., "arguments": {...}}\n</tool_call>\n' -}}
    {{- 'The result follows in <tool_response></tool_response>.' -}}
  {%- endif -%}
  {{- '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages if message.role != 'system' -%}
  {%- if message.role == 'tool' -%}
    {{- '<|im_start|>user\n<tool_response>\n' + body(message.content) + '\n</tool_response><|im_end|>\n' -}}
  {%- else -%}
    {{- '<|im_start|>' + message.role + '\n' + body(message.content) -}}
    {%- for call in message.tool_calls or [] -%}
      {{- '\n' if message.content or not loop.first else '' -}}
      {{- '<tool_call>\n' -}}
      {{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson + '\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""


class Qwen25VL:
    """The family of Qwen2.5-VL checkpoints.

    Args:
        tokenizer: the checkpoint's fast tokenizer.
        patch_size, merge_size, temporal_patch_size: of the checkpoint's vision config.
    """

    chat_template = CHAT_TEMPLATE

    def __init__(self, tokenizer: Any, *, patch_size: int, merge_size: int, temporal_patch_size: int) -> None:
        self.tokenizer = tokenizer
        self.patch_size, self.merge_size, self.temporal_patch_size = (
            patch_size,
            merge_size,
            temporal_patch_size,
        )
        self.space: CoordinateSpace = SeenPixels()
        self.codec: ToolCodec = Hermes()
        self.eos_ids: tuple[int, ...] = (control_id(tokenizer, END.token),)
        self.pad_id = control_id(tokenizer, "<|endoftext|>")
        self.image_id = control_id(tokenizer, IMAGE_PAD)
        self.reserved_ids = tuple(control_id(tokenizer, token) for token in RESERVED)

    @classmethod
    def from_config(cls, config: Any, tokenizer: Any) -> Qwen25VL:
        vision = config.vision_config
        return cls(
            tokenizer,
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
        )

    def encode_prompt(self, messages: Sequence[Message], media: Sequence[Media], tools: Sequence[Tool]) -> Tokens:
        """The conversation so far, up to and with the header of the assistant's turn."""
        system = "".join(message.text for message in messages if message.role == "system")
        system += tools_prompt(tools) if tools else ""
        pieces: list[Piece] = [START, "system\n", system, END, "\n"] if system else []
        for message in messages:
            if message.role != "system":
                pieces += [START, f"{message.role}\n", *self._body(message, media), END, "\n"]
        return self._tokens([*pieces, START, "assistant\n"], media, messages)

    def extend(self, observation: Message, media: Sequence[Media], *, closed: bool) -> Tokens:
        """A tool's result after a model turn, up to and with the header of the next turn."""
        pieces: list[Piece] = [] if closed else [END]
        pieces += [
            "\n",
            START,
            "user\n<tool_response>\n",
            *self._body(observation, media),
            "\n</tool_response>",
        ]
        return self._tokens([*pieces, END, "\n", START, "assistant\n"], media, [observation])

    def encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(encode_text(self.tokenizer, text))

    def encode_turn(self, message: Message) -> tuple[int, ...]:
        calls = "\n".join(self.codec.format_call(call) for call in message.tool_calls)
        text = "\n".join(part for part in (message.text, calls) if part)
        return (*encode_text(self.tokenizer, text), self.eos_ids[0])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a model turn, without its end token."""
        text: str = self.tokenizer.decode([i for i in ids if i not in self.eos_ids], skip_special_tokens=False)
        return text

    def positions(self, tokens: Tokens) -> np.ndarray:
        return mrope_positions(len(tokens.ids), tokens.spans)

    def grid(self, medium: Media) -> tuple[int, int, int]:
        """(t, h, w) of an image in merged vision tokens."""
        width, height = medium.frame.seen
        side = self.patch_size * self.merge_size
        if width % side or height % side:
            raise ValueError(f"{medium.label}: seen size {width} x {height} is not a multiple of {side}")
        return (1, height // side, width // side)

    def encode_media(self, model: Any, media: Sequence[Media]) -> list[torch.Tensor]:
        """(tokens, D) features of each image; one pass through the vision tower."""
        if not media:
            return []
        device = model.device
        patches = torch.cat([self.patches(medium.data) for medium in media]).to(device, model.dtype)
        sizes = [self.grid(medium) for medium in media]
        grids = torch.tensor([(t, h * self.merge_size, w * self.merge_size) for t, h, w in sizes], device=device)
        output = model.model.get_image_features(patches, image_grid_thw=grids)
        return list(output.pooler_output)

    def patches(self, pixels: np.ndarray) -> torch.Tensor:
        """(H/p * W/p, C * temporal * p * p) normalised patches of an H x W x 3 uint8 image.

        Patches of one merged token are neighbours, as the vision tower's merger expects.
        """
        image = torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1) / 255
        image = (image - torch.tensor(IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(IMAGE_STD).view(3, 1, 1)
        p, m = self.patch_size, self.merge_size
        _, height, width = image.shape
        grid = image.view(3, height // (m * p), m, p, width // (m * p), m, p)
        grid = grid.permute(1, 4, 2, 5, 0, 3, 6)  # (H, W, m, m, C, p, p)
        still = grid.unsqueeze(5).expand(-1, -1, -1, -1, -1, self.temporal_patch_size, -1, -1)
        return still.reshape(-1, 3 * self.temporal_patch_size * p * p)

    def _body(self, message: Message, media: Sequence[Media]) -> list[Piece]:
        pieces: list[Piece] = []
        for part in message.parts:
            if part.media is None:
                pieces.append(part.text or "")
            else:
                t, h, w = self.grid(media[part.media])
                pieces += [VISION_START, Control(IMAGE_PAD, t * h * w), VISION_END]
        return pieces

    def _tokens(self, pieces: Sequence[Piece], media: Sequence[Media], messages: Sequence[Message]) -> Tokens:
        ids = encode_pieces(self.tokenizer, pieces)
        order = [part.media for message in messages for part in message.parts if part.media is not None]
        spans: list[MediaSpan] = []
        at = 0
        for index in order:
            start = ids.index(self.image_id, at)
            grid = self.grid(media[index])
            at = start + grid[0] * grid[1] * grid[2]
            spans.append(MediaSpan(key=media[index].key, start=start, length=at - start, grid=grid))
        assert ids.count(self.image_id) == sum(span.length for span in spans), "placeholders and features differ"
        return Tokens(ids=tuple(ids), spans=tuple(spans))
