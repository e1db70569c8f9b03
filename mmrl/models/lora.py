"""LoRA (arXiv 2106.09685): small trained matrices beside frozen linear layers, in peft's modules and files.

Adapters are put into the model in place: outside the adapted layers no name changes, and a model is used as if it had
none. There is no dropout: a rollout and the update after it must find the same log-probs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mmrl.config import LoraSection
from mmrl.errors import ConfigError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = ".base_layer."
"""What peft puts into the names of an adapted layer's own weights."""
PREFIX, NAME = "base_model.model.", ".default"
"""peft's files put the one before a parameter's name, its modules put the other before the name's last part."""


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def adapter_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}


def add_adapter(model: Any, text_model: torch.nn.Module, section: LoraSection, base: str | Path, seed: int) -> Any:
    """Put a new adapter, which changes nothing yet, into the model; returns its peft configuration.

    Args:
        text_model: the part of the model whose layers are adapted where `section` names none.
        base: where the model was loaded from; the adapter's files name it.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        target_modules=target_layers(model, text_model, section.targets),
        base_model_name_or_path=str(Path(base).resolve() if Path(base).is_dir() else base),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(model, config)
    return config


def target_layers(model: Any, text_model: torch.nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """Names of the linear layers to adapt. The head is none of them: it may share its weights with the embeddings."""
    head, text = model.get_output_embeddings(), {id(module) for module in text_model.modules()}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    example = next((name for name, layer in layers.items() if id(layer) in text), "")
    if patterns is None:
        return [name for name, layer in layers.items() if id(layer) in text]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ConfigError(
                f"model.lora.targets: {pattern!r} is the whole name of no linear layer that takes an adapter (the head "
                f"takes none); write '*.q_proj' for all of a kind; names look like {example!r}"
            )
    return [name for name in layers if any(fnmatchcase(name, pattern) for pattern in patterns)]


def is_folder(path: str | Path) -> bool:
    """Whether an adapter lies there, not a whole model."""
    return (Path(path) / CONFIG).is_file()


def base_of(folder: str | Path) -> str:
    """Folder or hub id of the model that an adapter was trained on."""
    file = Path(folder) / CONFIG
    base = json.loads(file.read_text()).get("base_model_name_or_path") or ""
    if not base or (Path(base).is_absolute() and not Path(base).is_dir()):
        raise ConfigError(
            f"{file}: base_model_name_or_path is no model ({base!r}); write the base model's folder there"
        )
    return str(base)


def load_adapter(model: Any, folder: Path, section: LoraSection | None = None) -> Any:
    """Put the adapter in a folder into the model it was trained on; returns its peft configuration.

    ConfigError where it is not the adapter that `section` asks for.
    """
    from peft import LoraConfig

    kind = json.loads((folder / CONFIG).read_text()).get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"{folder / CONFIG}: peft_type {kind!r} is not supported, only 'LORA' is")
    config = LoraConfig.from_pretrained(str(folder))
    if section is not None and (config.r, config.lora_alpha) != (section.rank, section.alpha):
        raise ConfigError(
            f"model.lora: the adapter in {folder} has rank {config.r} and alpha {config.lora_alpha}, "
            f"not {section.rank} and {section.alpha}: set these, or name another model"
        )
    config.lora_dropout = 0.0
    values = read_adapter(folder)
    if any("lm_head." in name for name in values):
        raise ConfigError(f"{folder}: the adapter changes the head, which may be tied to the embeddings; not supported")
    try:
        _inject(model, config)
    except ValueError as error:
        raise ConfigError(f"{folder}: the adapter does not fit the model: {str(error).splitlines()[0]}") from None
    write_adapter(model, values, folder)
    return config


def read_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter's weights by the names of the model's parameters."""
    tensors = load_file(folder / WEIGHTS)
    return {_inner_name(name): tensor for name, tensor in tensors.items()}


def write_adapter(model: Any, values: Mapping[str, torch.Tensor], where: Path) -> None:
    """Give the model's adapter these weights, all of them and no others."""
    own = {name: parameter.shape for name, parameter in adapter_parameters(model).items()}
    odd = sorted(own.items() ^ {name: value.shape for name, value in values.items()}.items())
    if odd:
        raise ConfigError(
            f"{where}: the adapter does not fit the model: {odd[0][0]} is in one only, or of another size"
        )
    for name, parameter in adapter_parameters(model).items():
        parameter.data.copy_(values[name])


def save_adapter(model: Any, config: Any, folder: Path) -> None:
    """A folder that peft and vLLM load: adapter_config.json and adapter_model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        _file_name(name): parameter.detach().contiguous() for name, parameter in adapter_parameters(model).items()
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def with_adapter(model: Any, name: str, weight: torch.Tensor) -> torch.Tensor:
    """What a layer computes with: its weight, and what its adapter adds to it, rounded once."""
    if not name.endswith(f"{BASE}weight"):
        return weight
    layer = model.get_submodule(name.removesuffix(f"{BASE}weight"))
    return (weight.float() + layer.get_delta_weight(NAME.removeprefix(".")).float()).to(weight.dtype)


@contextmanager
def holding(parameters: Mapping[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> Iterator[None]:
    """Parameters hold other values for a while; nothing is copied."""
    _swap(parameters, values)
    try:
        yield
    finally:
        _swap(parameters, values)


def _swap(parameters: Mapping[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.data, values[name] = values[name], parameter.data


def _inject(model: Any, config: Any) -> None:
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, model)
    if isinstance(config.target_modules, set):  # its order would differ from process to process
        config.target_modules = sorted(config.target_modules)
    for parameter in adapter_parameters(model).values():
        parameter.data = parameter.data.to(model.dtype)


def _file_name(name: str) -> str:
    head, _, last = name.rpartition(".")
    return f"{PREFIX}{head.removesuffix(NAME)}.{last}"


def _inner_name(name: str) -> str:
    head, _, last = name.removeprefix(PREFIX).rpartition(".")
    return f"{head}{NAME}.{last}"
