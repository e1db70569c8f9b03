"""Checkpoints: which family one is of, and how it is loaded and written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mmrl.attention.blocks import use_blocks
from mmrl.attention.text import use_shared_prefix
from mmrl.config import LoraSection
from mmrl.errors import ConfigError
from mmrl.models import lora as adapters
from mmrl.models.chatml import ChatML
from mmrl.models.patches import use_matrix_patches
from mmrl.models.qwen2_5_omni import Qwen25Omni
from mmrl.models.qwen2_audio import Qwen2Audio
from mmrl.models.qwen2_vl import Qwen2VL, Qwen25VL
from mmrl.models.qwen3_vl import Qwen3VL, Qwen35


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A family of checkpoints: its class in transformers, ours, and how modules are named in the hub's files."""

    model: str
    family: type[ChatML]
    names: tuple[tuple[str, str], ...]
    """(start of a name in transformers' module tree, start in the hub's files); the first that fits."""
    architecture: str = ""
    """What config.json calls the model, where that is not its class: vLLM chooses its own class by it."""


VL_NAMES = (("model.language_model.", "model."), ("model.visual.", "visual."))
FAMILIES = {
    "qwen2_vl": Kind(
        model="Qwen2VLForConditionalGeneration",
        family=Qwen2VL,
        names=VL_NAMES,
    ),
    "qwen2_5_vl": Kind(
        model="Qwen2_5_VLForConditionalGeneration",
        family=Qwen25VL,
        names=VL_NAMES,
    ),
    "qwen3_vl": Kind(
        model="Qwen3VLForConditionalGeneration",
        family=Qwen3VL,
        names=(),
    ),
    "qwen3_5": Kind(
        model="Qwen3_5ForConditionalGeneration",
        family=Qwen35,
        names=(),
    ),
    "qwen2_audio": Kind(
        model="Qwen2AudioForConditionalGeneration",
        family=Qwen2Audio,
        names=(
            ("model.language_model.", "language_model.model."),
            ("model.audio_tower.", "audio_tower."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
            ("lm_head.", "language_model.lm_head."),
        ),
    ),
    "qwen2_5_omni": Kind(
        model="Qwen2_5OmniThinkerForConditionalGeneration",
        family=Qwen25Omni,
        names=(("", "thinker."),),
        architecture="Qwen2_5OmniModel",
    ),
}
REFUSED = {
    "qwen3_vl_moe": "mixture-of-experts models are not supported yet",
    "qwen3_5_moe": "mixture-of-experts models are not supported yet",
    "qwen3_omni_moe": "Qwen3-Omni is not supported yet",
}
SHARD_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A loaded model with all that is written back beside it."""

    model: Any
    family: ChatML
    kind: Kind
    config: Any
    """What config.json holds: of an Omni checkpoint the whole, not the thinker's part."""
    processor: Any
    adapter: Any = None
    """peft's configuration of the model's adapter; None for a model without."""

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def save(self, path: Path) -> None:
        """A folder that transformers and vLLM load: weights, config, tokenizer, chat template, processors.

        Of a model with an adapter it is the adapter, in peft's format, in place of weights and config.
        """
        if self.adapter is not None:
            adapters.save_adapter(self.model, self.adapter, path)
        else:
            write_weights(hub_weights(self.model, self.kind), path)
            self.config.architectures = self.config.architectures or [self.kind.architecture or self.kind.model]
            self.config.save_pretrained(path)
            self.model.generation_config.save_pretrained(path)
        if self.family.chat_template:
            self.processor.chat_template = self.family.chat_template
            self.tokenizer.chat_template = self.family.chat_template
        self.processor.save_pretrained(path)
        self.tokenizer.save_pretrained(path)


def write_weights(weights: Iterator[tuple[str, torch.Tensor]], path: Path) -> None:
    """Safetensors in a folder."""
    from huggingface_hub import save_torch_state_dict

    path.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(dict(weights), path, max_shard_size=SHARD_BYTES, metadata={"format": "pt"})
    for file in path.glob("*.safetensors"):
        file.chmod(0o644)  # it is written for its owner only; a server may run as another user


def hub_weights(model: Any, kind: Kind) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight once, under its name in the hub's files, whatever transformers calls its module; that of an adapted
    layer with the adapter added."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if not adapters.is_adapter(name)}
    tied = {
        name
        for name, source in model.all_tied_weights_keys.items()
        if weights[name].data_ptr() == weights[source].data_ptr()
    }
    return (
        (hub_name(name.replace(adapters.BASE, "."), kind), adapters.with_adapter(model, name, tensor))
        for name, tensor in weights.items()
        if name not in tied
    )


def hub_name(name: str, kind: Kind) -> str:
    for start, hub in kind.names:
        if name.startswith(start):
            return hub + name[len(start) :]
    return name


def load_checkpoint(
    path: str | Path, *, family: str | None, dtype: str, device: str, lora: LoraSection | None = None, seed: int = 0
) -> Checkpoint:
    """Load a checkpoint folder, an adapter's folder or a hub id.

    Args:
        lora: adapter to add; one that `path` holds already is of this rank and alpha, and goes on.
        seed: of a new adapter's weights.

    Raises:
        ConfigError: an unsupported family, or a path that is not there.
    """
    holds_adapter = adapters.is_folder(path)
    checkpoint = _load_model(adapters.base_of(path) if holds_adapter else path, family=family, dtype=dtype)
    adapter = None
    if holds_adapter:
        adapter = adapters.load_adapter(checkpoint.model, Path(path), lora)
    elif lora is not None:
        text_model = checkpoint.family.text_model(checkpoint.model)
        adapter = adapters.add_adapter(checkpoint.model, text_model, lora, path, seed)
    checkpoint.model.to(pick_device(device))
    return replace(checkpoint, adapter=adapter)


def _load_model(path: str | Path, *, family: str | None, dtype: str) -> Checkpoint:
    import transformers
    from transformers import AutoConfig, AutoProcessor
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
    kind = find_kind(family or config.model_type)
    processor = AutoProcessor.from_pretrained(path)
    model = getattr(transformers, kind.model).from_pretrained(path, dtype=getattr(torch, dtype))
    built = kind.family.from_config(model.config, processor)
    if built.blockwise:
        for tower in built.towers(model):
            use_blocks(tower)
            use_matrix_patches(tower)
    if not built.recurrent:
        text = built.text_model(model)
        refuse_sliding(text.config)
        use_shared_prefix(text)
    return Checkpoint(
        model=model,
        family=built,
        kind=kind,
        config=config,
        processor=processor,
    )


def refuse_sliding(config: Any) -> None:
    """ConfigError for a text model with sliding windows, which nothing here computes."""
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ConfigError("model.path: the text model attends in sliding windows; only full attention is supported")


def find_kind(name: str) -> Kind:
    """ConfigError, with the reason, for a family that is not supported."""
    if name in FAMILIES:
        return FAMILIES[name]
    reason = REFUSED.get(name, f"supported: {', '.join(FAMILIES)}")
    raise ConfigError(f"model family {name!r} is not supported; {reason}")


def pick_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
