"""`mmrl export`: a run's model as a folder that transformers, peft and vLLM load."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from mmrl.config import load_config
from mmrl.errors import ConfigError
from mmrl.models import lora
from mmrl.models.load import load_checkpoint
from mmrl.train import checkpoint as checkpoints


def export(run: Path, to: Path, *, checkpoint: str = "last", adapter: bool = False) -> Path:
    """Write the model of a run's checkpoint into the folder `to`; returns the checkpoint's folder.

    Args:
        checkpoint: "last", "best", or a folder's name in the run's checkpoints.
        adapter: write the adapter alone, in place of a model that it is merged into.
    """
    found, to = find_checkpoint(run, checkpoint), to.resolve()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"--to: {to} is there already and not an empty folder; name another")
    model = found / "model"
    has_adapter = lora.is_folder(model)
    if adapter and not has_adapter:
        raise ConfigError(f"--adapter: {run} was trained without model.lora and holds whole models")
    part = to.with_name(f"{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--to: {to} cannot be written ({error.strerror})") from None
    if has_adapter and not adapter:
        _save_merged(run, model, part)
    else:
        shutil.copytree(model, part, dirs_exist_ok=True)
    part.replace(to)
    return found


def find_checkpoint(run: Path, name: str) -> Path:
    """A complete, undamaged checkpoint of a run; ConfigError says which there are."""
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run}: holds no run; name a directory such as runs/quickstart")
    folder = run / "checkpoints"
    found = {path.name: path for path in checkpoints.complete(folder)}
    path = found.get((folder / name).resolve().name)
    if path is None:
        raise ConfigError(f"--checkpoint: {folder} has no {name!r}; it has {', '.join(found) or 'none'}")
    checkpoints.verify(path)
    return path


def _save_merged(run: Path, model: Path, folder: Path) -> None:
    section = load_config(run / "config.yaml").model
    loaded = load_checkpoint(model, family=section.family, dtype=section.dtype, device="cpu")
    replace(loaded, adapter=None).save(folder)
