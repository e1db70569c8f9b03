"""A tiny Qwen2.5-VL with random weights, and a tokenizer trained on a demo's own text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)
from transformers.utils import logging

from mmrl.models.qwen2_5_vl import CHAT_TEMPLATE

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TOOL_TOKENS = ("<tool_call>", "</tool_call>")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's control tokens.

    Only runs of digits end a word, so that a fixed phrase becomes one token and a whole number another: the tiny model
    then spends its few layers on the picture instead of on spelling.
    """
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r"\d+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=2048,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TOOL_TOKENS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def build_model(tokenizer: Any, *, seed: int) -> Any:
    """A Qwen2.5-VL of a million parameters with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen2_5_VLForConditionalGeneration(tiny_config(tokenizer)).float()


def tiny_config(tokenizer: Any) -> Qwen2_5_VLConfig:
    """The default 0.02 init is made for wide layers; at this width nothing is learned from it in hundreds of steps."""
    init, text_width, vision_width, vision_layers = 0.08, 128, 64, 2
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": text_width,
        "intermediate_size": 2 * text_width,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "initializer_range": init,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "depth": vision_layers,
        "hidden_size": vision_width,
        "intermediate_size": 2 * vision_width,
        "num_heads": 4,
        "out_hidden_size": text_width,
        "fullatt_block_indexes": list(range(vision_layers)),
        "initializer_range": init,
    }
    ids = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in {
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        }.items()
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)


def save_checkpoint(model: Any, tokenizer: Any, path: Path, *, side: int) -> None:
    """An ordinary checkpoint folder: weights, config, tokenizer, chat template and image processor.

    Args:
        side: images are shown to the model with about `side` x `side` pixels.
    """
    logging.disable_progress_bar()
    tokenizer.chat_template = CHAT_TEMPLATE
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    Qwen2VLImageProcessor(min_pixels=side**2, max_pixels=side**2).save_pretrained(path)
