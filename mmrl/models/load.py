"""Checkpoints: which family one is of, and how it is loaded and written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmrl.errors import ConfigError
from mmrl.models.qwen2_5_vl import Qwen25VL

FAMILIES = {"qwen2_5_vl": Qwen25VL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A loaded model with all that is written back beside it."""

    model: Any
    family: Qwen25VL
    tokenizer: Any
    image_processor: Any

    def save(self, path: Path) -> None:
        """A folder that transformers loads: weights, config, tokenizer, chat template, image processor."""
        self.model.save_pretrained(path)
        self.tokenizer.chat_template = self.family.chat_template
        self.tokenizer.save_pretrained(path)
        self.image_processor.save_pretrained(path)


def load_checkpoint(path: str | Path, *, family: str | None, dtype: str, device: str) -> Checkpoint:
    """Load a checkpoint folder or hub id. ConfigError for an unsupported family or a path that is not there."""
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()  # they would break up our own progress display
    if os.sep in str(path) and not Path(path).is_dir() and str(path).count("/") != 1:
        raise ConfigError(f"model.path: no folder {path}")
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path: {path} is no checkpoint that transformers knows ({first_line(error)})"
        ) from None
    name = family or config.model_type
    if name not in FAMILIES:
        raise ConfigError(f"model family {name!r} is not supported; supported: {', '.join(FAMILIES)}")
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=getattr(torch, dtype))
    return Checkpoint(
        model=model.to(pick_device(device)),
        family=FAMILIES[name].from_config(config, tokenizer),
        tokenizer=tokenizer,
        image_processor=AutoImageProcessor.from_pretrained(path),
    )


def pick_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
