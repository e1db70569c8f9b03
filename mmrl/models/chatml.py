"""What every family of Qwen checkpoints has in common: ChatML turns, Hermes calls, M-RoPE positions.

A family adds how its media are written (`place`) and encoded. `CHAT_TEMPLATE` is the same text as Jinja: it is exported
with checkpoints whose own template knows no tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmrl.models.embed import Embedded
from mmrl.models.hermes import Hermes, schema, tools_prompt
from mmrl.models.mrope import mrope_positions
from mmrl.models.space import SeenPixels
from mmrl.models.text import Control, Piece, control_id, encode_pieces, encode_text
from mmrl.protocols import CoordinateSpace, Tool, ToolCodec
from mmrl.types import Media, Message, Part, Tokens

START, END = Control("<|im_start|>"), Control("<|im_end|>")

CHAT_TEMPLATE = r"""
{%- macro body(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {%- if part.type == 'text' -%}
        {{- part.text -}}
      {%- else -%}
        {{- MEDIA[part.type] -}}
      {%- endif -%}
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


def chat_template(media: dict[str, str]) -> str:
    """The template of a family that writes each kind of medium as `media` says."""
    return f"{{%- set MEDIA = {media!r} -%}}" + CHAT_TEMPLATE


class ChatML:
    """Base of the families. A subclass sets the class attributes and implements the methods that raise here."""

    chat_template: str
    """Exported with checkpoints; empty keeps the checkpoint's own."""
    controls: tuple[str, ...]
    """Control tokens around and of media: a policy may never sample them."""
    opening: str = ""
    """Text that the header of the model's turn already holds."""
    hears_video: bool = False
    """A video may be shown together with its sound."""
    blockwise: bool = False
    """The towers attend inside blocks of one long sequence of patches or sounds."""
    recurrent: bool = False
    """Layers carry a state from token to token: nothing that was computed can be shared between branches."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.space: CoordinateSpace = SeenPixels()
        self.codec: ToolCodec = Hermes()
        self.eos_ids: tuple[int, ...] = (control_id(tokenizer, END.token),)
        self.pad_id = control_id(tokenizer, "<|endoftext|>")
        self.reserved_ids = tuple(control_id(tokenizer, token) for token in self.controls)

    @classmethod
    def from_config(cls, config: Any, processor: Any) -> ChatML:
        """The family of a checkpoint, by its model's configuration and its processor."""
        raise NotImplementedError

    def place(self, part: Part, media: Sequence[Media]) -> list[Piece]:
        """How a medium (and its sound) is written: placeholders between control tokens."""
        raise NotImplementedError

    def parts(self, medium: Media) -> tuple[Media, ...]:
        """Pieces that are encoded apart from one another; their features in order are the medium's."""
        return (medium,)

    def tower_tokens(self, part: Media) -> int:
        """Tokens that a part takes in a pass through its tower, padding included."""
        raise NotImplementedError

    def media_settings(self) -> str:
        """How media are cut and normalised, as text: what features depend on beside the towers."""
        raise NotImplementedError

    def encode_media(self, model: Any, media: Sequence[Media]) -> list[torch.Tensor]:
        raise NotImplementedError

    def text_model(self, model: Any) -> Any:
        return model.model.language_model

    def hidden_states(
        self,
        model: Any,
        inputs: Embedded,
        mask: torch.Tensor | None,
        cache: Any = None,
        valid_BT: torch.Tensor | None = None,
        **attention: Any,
    ) -> torch.Tensor:
        """(B, T, D) last hidden states of the text model, with explicit positions.

        Args:
            mask: (B, 1, queries, keys), True where attention is allowed; None is plain causal attention.
            cache: transformers Cache that holds the keys of earlier tokens and takes those of these.
            valid_BT: True for real tokens, False for padding; only recurrent layers need it.
            attention: handed to the attention function (mmrl/attention/text.py).
        """
        output = self.text_model(model)(
            inputs_embeds=inputs.embeds_BTD,
            attention_mask=self.masks(mask, valid_BT),
            past_key_values=cache,
            use_cache=cache is not None,
            **self.text_inputs(inputs),
            **attention,
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def masks(self, mask: torch.Tensor | None, valid_BT: torch.Tensor | None) -> Any:
        """What the text model takes as attention_mask.

        A mapping is taken as it is: transformers then derives no mask of its own from positions or padding.
        """
        del valid_BT
        return {"full_attention": mask, "sliding_attention": mask}

    def text_inputs(self, inputs: Embedded) -> dict[str, Any]:
        """What the text model takes beside embeddings and mask."""
        return {"position_ids": inputs.positions_3BT}

    def towers(self, model: Any) -> list[torch.nn.Module]:
        """The modules that encode media."""
        return [model.model.visual]

    def encode_prompt(self, messages: Sequence[Message], media: Sequence[Media], tools: Sequence[Tool]) -> Tokens:
        """The conversation so far, up to and with the header of the assistant's turn."""
        system = self._system("".join(message.text for message in messages if message.role == "system"), tools)
        pieces: list[Piece] = [START, "system\n", system, END, "\n"] if system else []
        for message in messages:
            if message.role != "system":
                pieces += [*self._turn(message, media), "\n"]
        return self._tokens([*pieces, *self._header()])

    def extend(self, observation: Message, media: Sequence[Media], *, closed: bool) -> Tokens:
        """A tool's result, or a user's next words, after a model turn; up to and with the header of the next turn."""
        pieces: list[Piece] = [] if closed else [END]
        return self._tokens([*pieces, "\n", *self._turn(observation, media), "\n", *self._header()])

    def encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(encode_text(self.tokenizer, text))

    def encode_turn(self, message: Message) -> tuple[int, ...]:
        text = self.behind_opening("\n".join(part for part in (message.text, self._calls(message)) if part))
        return (*encode_text(self.tokenizer, text), self.eos_ids[0])

    def behind_opening(self, text: str) -> str:
        """What the model writes of a turn, where the header holds `opening` already."""
        return text

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a model turn, without its end token."""
        text: str = self.tokenizer.decode([i for i in ids if i not in self.eos_ids], skip_special_tokens=False)
        return text

    def positions(self, tokens: Tokens) -> np.ndarray:
        return mrope_positions(len(tokens.ids), tokens.spans)

    def _header(self) -> list[Piece]:
        return [START, f"assistant\n{self.opening}"]

    def _turn(self, message: Message, media: Sequence[Media]) -> list[Piece]:
        """A turn of the conversation from its header to its end token; a tool's result is a user's turn."""
        body = self._body(message, media)
        if message.role == "tool":
            return [START, "user\n<tool_response>\n", *body, "\n</tool_response>", END]
        calls = self._calls(message)
        return [START, f"{message.role}\n", *body, "\n" if body and calls else "", calls, END]

    def _calls(self, message: Message) -> str:
        return "\n".join(self.codec.format_call(call) for call in message.tool_calls)

    def _body(self, message: Message, media: Sequence[Media]) -> list[Piece]:
        pieces: list[Piece] = []
        for part in message.parts:
            if part.sound is not None and not self.hears_video:
                raise ValueError("this model takes no video together with its sound")
            pieces += [part.text or ""] if part.media is None else self.place(part, media)
        return pieces

    def _system(self, system: str, tools: Sequence[Tool]) -> str:
        """The system turn: in the words of the checkpoint's own template where that knows tools, else in ours."""
        own = self.tokenizer.chat_template or ""
        if not tools or "tools" not in own or own == self.chat_template:
            return system + (tools_prompt(tools) if tools else "")
        message = [{"role": "system", "content": system}, {"role": "user", "content": ""}]
        schemas = [schema(tool) for tool in tools]
        rendered: str = self.tokenizer.apply_chat_template(message, tools=schemas, tokenize=False)
        return rendered.partition("<|im_start|>system\n")[2].partition("<|im_end|>\n<|im_start|>user")[0]

    def _tokens(self, pieces: Sequence[Piece]) -> Tokens:
        return encode_pieces(self.tokenizer, pieces)
