"""What vLLM is asked: the tokens as they are, and for every run of media tokens its name and what places it in time.

vLLM's processors are passed by: the ids are ours, placeholders expanded, and features come by name from a folder
(mmrl/cache/shared.py). Nothing of a prompt is computed twice, and it cannot come out otherwise than the family has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmrl.errors import ConfigError
from mmrl.models.audio import mel_length
from mmrl.models.chatml import ChatML
from mmrl.models.qwen2_5_omni import Qwen25Omni
from mmrl.models.qwen2_audio import Qwen2Audio
from mmrl.models.qwen2_vl import Qwen25VL
from mmrl.models.qwen3_vl import Qwen3VL, Qwen35
from mmrl.protocols import Request
from mmrl.types import Media, MediaSpan

SUPPRESS = -100.0
"""Added to the logit of an id that may not be sampled, vLLM's lowest: exp(-100) is 0 beside any other in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A run of media tokens."""

    modality: str
    name: str
    """Of its features: equal names mean equal features."""
    start: int
    length: int
    fields: Mapping[str, torch.Tensor]
    """What vLLM places it by: grid, seconds of a step, number of audio tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A model turn to be written."""

    request: Request
    ids: tuple[int, ...]
    """All tokens so far, placeholders expanded."""
    items: tuple[Item, ...]
    stop_ids: tuple[int, ...]
    suppressed_ids: tuple[int, ...]
    """Are never sampled."""
    priority: int
    """Lower goes first."""


def modalities(family: ChatML) -> tuple[str, ...]:
    """Kinds of media that vLLM's model of this family takes; ConfigError where it is not supported."""
    if isinstance(family, Qwen35):
        raise ConfigError("rollout.engine: vllm takes no Qwen3.5 so far; use hf")
    if isinstance(family, Qwen25Omni):
        return ("image", "video", "audio")
    return ("audio",) if isinstance(family, Qwen2Audio) else ("image", "video")


def describe(family: ChatML, span: MediaSpan, medium: Media, name: str) -> Item:
    """What vLLM is told of a span. The time of a Qwen3-VL frame stands in the text: it is placed as an image.

    ValueError for a video that is heard while it is seen.
    """
    check_span(span)
    modality = "image" if isinstance(family, Qwen3VL) else medium.kind
    return Item(
        modality=modality,
        name=name,
        start=span.start,
        length=span.length,
        fields=_fields(family, span, medium, modality),
    )


def check_span(span: MediaSpan) -> None:
    """ValueError for a part of a video that is heard while it is seen: in vLLM's prompts the two are one item."""
    if span.joined:
        raise ValueError("rollout.engine: vllm takes no video together with its sound; use hf, or show it without")


def _fields(family: ChatML, span: MediaSpan, medium: Media, modality: str) -> dict[str, torch.Tensor]:
    if modality == "audio":
        return _audio_fields(family, span, medium)
    assert isinstance(family, Qwen25VL)
    assert span.grid is not None
    t, h, w = span.grid
    merge = family.patching.merge
    fields = {f"{modality}_grid_thw": torch.tensor([t, h * merge, w * merge])}
    if modality == "video":
        # float64: in float32 a step can fall on the other side of a whole position.
        fields["second_per_grid_ts"] = torch.tensor(family.patching.seconds_per_step(medium), dtype=torch.float64)
    return fields


def _audio_fields(family: ChatML, span: MediaSpan, medium: Media) -> dict[str, torch.Tensor]:
    if isinstance(family, Qwen25Omni):
        return {"audio_feature_lengths": torch.tensor(mel_length(medium))}
    return {"audio_num_tokens": torch.tensor(span.length)}


def engine_input(call: Call) -> Any:
    """vLLM's own form of a prompt that needs no processing."""
    from vllm.inputs.engine import mm_input, tokens_input
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    if not call.items:
        return tokens_input(list(call.ids))
    groups = by_modality(call.items)
    return mm_input(
        prompt_token_ids=list(call.ids),
        mm_kwargs=MultiModalKwargsItems(
            {kind: [kwargs_item(item) for item in items] for kind, items in groups.items()}
        ),
        mm_hashes={kind: [item.name for item in items] for kind, items in groups.items()},
        mm_placeholders={
            kind: [PlaceholderRange(offset=item.start, length=item.length) for item in items]
            for kind, items in groups.items()
        },
    )


def sampling(call: Call) -> dict[str, Any]:
    """Fields of vLLM's SamplingParams."""
    request = call.request
    return {
        "temperature": request.temperature,
        "seed": request.seed,
        "max_tokens": request.max_tokens,
        "stop_token_ids": list(call.stop_ids),
        "ignore_eos": True,
        "stop": list(request.stop),
        "include_stop_str_in_output": True,
        "detokenize": bool(request.stop),
        "logit_bias": dict.fromkeys(call.suppressed_ids, SUPPRESS),
        "logprobs": 0,
    }


def by_modality(items: Sequence[Item]) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.modality, []).append(item)
    return groups


def kwargs_item(item: Item) -> Any:
    """An item's fields as vLLM holds them."""
    from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem, MultiModalKwargsItem

    field = MultiModalBatchedField(keep_on_cpu=True)
    return MultiModalKwargsItem({key: MultiModalFieldElem(value, field) for key, value in item.fields.items()})
