"""Qwen2.5-VL checkpoints with random weights, in the sizes that are measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.task import MAX_PIXELS, MAX_TOKENS, SIDE

WORDS, VOCABULARY = 3000, 4096
"""Words that the tokenizer is trained on; ids that it has at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    text: dict[str, Any]
    vision: dict[str, Any]
    vocab_size: int
    dtype: str


SIZES = {
    "tiny": Size(
        text={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        },
        vision={
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_heads": 2,
            "out_hidden_size": 128,
            "window_size": 112,
            "fullatt_block_indexes": [2],
        },
        vocab_size=VOCABULARY,
        dtype="float32",
    ),
    "small": Size(
        text={
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        },
        vision={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_heads": 4,
            "out_hidden_size": 256,
            "window_size": 112,
            "fullatt_block_indexes": [3],
        },
        vocab_size=VOCABULARY,
        dtype="float32",
    ),
    "3b": Size(
        text={
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        vocab_size=151936,
        dtype="bfloat16",
    ),
}


def write_checkpoint(size: Size, path: Path) -> None:
    """An ordinary checkpoint folder, which every framework loads."""
    import torch
    from transformers import (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    from mmrl.demo.tiny_model import random_model, save, train_tokenizer

    tokenizer = train_tokenizer(_words(), VOCABULARY)
    config = model_config(size, tokenizer)
    model = random_model(Qwen2_5_VLForConditionalGeneration, config, 0).to(getattr(torch, size.dtype))
    # Images are written at the size at which they are seen: no framework may resize them.
    images = Qwen2VLImageProcessor(min_pixels=SIDE * SIDE, max_pixels=MAX_PIXELS)
    save("qwen2_5_vl", model, config, Qwen2_5_VLProcessor(images, tokenizer, Qwen2VLVideoProcessor()), path)


def model_config(size: Size, tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig

    text = {
        "vocab_size": max(size.vocab_size, len(tokenizer)),
        "max_position_embeddings": MAX_TOKENS,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    tokens = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return Qwen2_5_VLConfig(
        text_config=text | size.text,
        vision_config=size.vision,
        tie_word_embeddings=True,
        **{key: tokenizer.convert_tokens_to_ids(token) for key, token in tokens.items()},
    )


def _words() -> Iterator[str]:
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    yield from ("user\n", "assistant\n", "\n")
    for _ in range(WORDS):
        yield "".join(rng.choice(letters, rng.integers(2, 8)))
