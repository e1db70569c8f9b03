"""Checkpoints: one folder each, written beside its name, moved into place when complete.

checkpoints/grpo-000120/
  model/                  a folder that transformers loads; with model.lora the adapter alone, in peft's format
  optimizer.safetensors   the optimiser's tensors by parameter name; of bfloat16 parameters the float32 copies, too
  state.json              where the run stands
  manifest.json           size and hash of every file; written last: without it a folder is no checkpoint
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mmrl.errors import MmrlError
from mmrl.models.load import Checkpoint
from mmrl.report.store import write_atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where a run stands; with the model and the optimiser, all that is needed to go on exactly.

    No state of a random generator is among it: every step seeds them by its name.
    """

    stage: int
    """Number of the stage."""
    stage_name: str
    step: int
    """Optimiser steps done in the stage."""
    position: int
    """Rows drawn by the stage's sampler."""
    train_seconds: float
    """Time spent in steps since the run began."""
    metric: float | None = None
    """The latest validation's value of the metric that chooses the best checkpoint."""


def save(
    folder: Path,
    checkpoint: Checkpoint,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: State,
) -> Path:
    """Write a checkpoint under `folder` and return its path."""
    path = folder / f"{state.stage:02d}-{state.stage_name}-{state.step:06d}"
    part = folder / f"{path.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    checkpoint.save(part / "model")
    save_file(optimizer_tensors(parameters, optimizer), part / "optimizer.safetensors")
    (part / "state.json").write_text(json.dumps(asdict(state), indent=1))
    files = [file for file in sorted(part.rglob("*")) if file.is_file()]
    manifest = {str(file.relative_to(part)): {"bytes": file.stat().st_size, "sha256": digest(file)} for file in files}
    for file in files:
        sync(file)
    write_atomic(part / "manifest.json", json.dumps(manifest, indent=1))
    shutil.rmtree(path, ignore_errors=True)
    part.rename(path)
    sync(folder)
    return path


def restore(path: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Put the optimiser's state back."""
    tensors = load_file(path / "optimizer.safetensors")
    for name, parameter in parameters.items():
        state = {key.rpartition("|")[2]: value for key, value in tensors.items() if key.rpartition("|")[0] == name}
        if state:
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def optimizer_tensors(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}|{key}"] = value.contiguous()
    return tensors


def read_state(path: Path) -> State:
    return State(**json.loads((path / "state.json").read_text()))


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path.parent for path in folder.glob("*/manifest.json")]
    return sorted(path for path in found if not path.is_symlink() and path.suffix != ".part")


def best(folder: Path) -> Path | None:
    """The checkpoint with the highest validation metric; the earlier of equals."""
    return max(_scored(folder), key=lambda item: item[0], default=(0.0, None))[1]


def best_metric(folder: Path) -> float | None:
    """The highest validation metric of any checkpoint."""
    return max((metric for metric, _ in _scored(folder)), default=None)


def _scored(folder: Path) -> list[tuple[float, Path]]:
    states = [(read_state(path).metric, path) for path in complete(folder)]
    return [(metric, path) for metric, path in states if metric is not None]


def prune(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints and the best one, and link to the last and the best."""
    found, best_one = complete(folder), best(folder)
    for path in found[:-keep]:
        if path != best_one:
            shutil.rmtree(path)
    link(folder / "last", found[-1])
    if best_one is not None:
        link(folder / "best", best_one)


def link(place: Path, target: Path) -> None:
    """Have `place` lead to `target`, beside it; it always leads to a checkpoint."""
    part = place.with_suffix(".part")
    part.unlink(missing_ok=True)
    part.symlink_to(target.name)
    part.replace(place)


def verify(path: Path) -> None:
    """MmrlError names the first file that differs from the manifest."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name, entry in manifest.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["bytes"] or digest(file) != entry["sha256"]:
            raise MmrlError(f"{file}: missing or damaged; remove the checkpoint {path.name} to go on from an older one")


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have the file or folder on disk, not only in memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
