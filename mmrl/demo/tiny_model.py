"""Tiny models with random weights and a tokenizer trained on a demo's own text, as ordinary checkpoints."""

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
    Qwen2_5_VLProcessor,
    Qwen2_5OmniConfig,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)
from transformers.utils import logging

from mmrl.models.load import FAMILIES, Checkpoint

VL_TOKENS = (
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
OMNI_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
TOOL_TOKENS = ("<tool_call>", "</tool_call>")
INIT = 0.08
"""The default 0.02 is made for wide layers; at this width nothing is learned from it in hundreds of steps."""
TEXT, VISION, VISION_LAYERS = 128, 64, 2
"""Widths of the text model and the vision tower, and the tower's layers."""


def train_tokenizer(texts: Iterable[str], vocab_size: int, **names: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's control tokens.

    Only runs of digits end a word, so that a fixed phrase becomes one token and a whole number another: the tiny model
    then spends its few layers on the media instead of on spelling.

    Args:
        names: further control tokens, each with the name under which a processor asks the tokenizer for it.
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
    controls = (*VL_TOKENS, *names.values())
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in controls])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TOOL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=names or None,
    )


def write_qwen2_5_vl(tokenizer: Any, path: Path, *, seed: int) -> None:
    """A Qwen2.5-VL of a million parameters."""
    config = Qwen2_5_VLConfig(
        text_config=text_config(tokenizer),
        vision_config=vision_config(),
        tie_word_embeddings=True,
        image_token_id=_id(tokenizer, "<|image_pad|>"),
        video_token_id=_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=_id(tokenizer, "<|vision_end|>"),
    )
    processor = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor())
    save("qwen2_5_vl", random_model(Qwen2_5_VLForConditionalGeneration, config, seed), config, processor, path)


def write_qwen2_5_omni(tokenizer: Any, path: Path, *, seed: int) -> None:
    """A Qwen2.5-Omni of a million parameters, of which only the thinker has weights."""
    thinker = Qwen2_5OmniThinkerConfig(
        text_config=text_config(tokenizer),
        vision_config=vision_config(),
        audio_config={
            "d_model": VISION,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 2 * VISION,
            "output_dim": TEXT,
            "init_std": INIT,
            "initializer_range": INIT,
        },
        tie_word_embeddings=True,
        image_token_index=_id(tokenizer, "<|IMAGE|>"),
        video_token_index=_id(tokenizer, "<|VIDEO|>"),
        audio_token_index=_id(tokenizer, "<|AUDIO|>"),
        vision_start_token_id=_id(tokenizer, "<|vision_bos|>"),
        vision_end_token_id=_id(tokenizer, "<|vision_eos|>"),
        audio_start_token_id=_id(tokenizer, "<|audio_bos|>"),
        audio_end_token_id=_id(tokenizer, "<|audio_eos|>"),
        initializer_range=INIT,
    )
    config = Qwen2_5OmniConfig(thinker_config=thinker.to_dict(), enable_audio_output=False)
    processor = Qwen2_5OmniProcessor(
        Qwen2VLImageProcessor(),
        Qwen2VLVideoProcessor(),
        WhisperFeatureExtractor(feature_size=128, chunk_length=300, return_attention_mask=True),
        tokenizer,
    )
    save(
        "qwen2_5_omni", random_model(Qwen2_5OmniThinkerForConditionalGeneration, thinker, seed), config, processor, path
    )


def save(name: str, model: Any, config: Any, processor: Any, path: Path) -> None:
    """An ordinary checkpoint folder, as mmrl writes it."""
    logging.disable_progress_bar()
    kind, tokenizer = FAMILIES[name], processor.tokenizer
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    family = kind.family.from_config(model.config, processor)
    Checkpoint(model=model, family=family, kind=kind, config=config, processor=processor).save(path)


def text_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT,
        "intermediate_size": 2 * TEXT,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "initializer_range": INIT,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }


def vision_config() -> dict[str, Any]:
    return {
        "depth": VISION_LAYERS,
        "hidden_size": VISION,
        "intermediate_size": 2 * VISION,
        "num_heads": 4,
        "out_hidden_size": TEXT,
        "fullatt_block_indexes": list(range(VISION_LAYERS)),
        "initializer_range": INIT,
    }


def random_model(model: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model(config).float()


def _id(tokenizer: Any, token: str) -> int:
    found: int = tokenizer.convert_tokens_to_ids(token)
    return found
