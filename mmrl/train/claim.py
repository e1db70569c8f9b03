"""Whose run directory it is: a directory belongs to one configuration, which may only be extended."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from mmrl.config import RunConfig, dump_config
from mmrl.errors import ConfigError
from mmrl.report.store import RunStore, write_atomic
from mmrl.versions import versions

TEST_TIME = "test_time.json"
"""What the test-time strategies reached, in a run's directory."""
FREE = re.compile(
    r"checkpoint\..*|report\..*|threads|data\.prefetch_steps|cache\..*|rollout\.(servers.*|folder)"
    r"|stages\.\d+\.(micro_batch_tokens|activation_checkpointing|max_engine_gap)"
)
"""Keys that may change between a run's start and its continuation: they bear on speed, memory and what is told."""


def claim(store: RunStore, config: RunConfig) -> None:
    """Write config.yaml and manifest.json, or check that they are this run's.

    ConfigError where the directory holds steps of a run of another configuration. Only the last stage's steps may
    differ: the run is then extended, and what its end gave is measured anew.
    """
    path = store.path / "config.yaml"
    text = dump_config(config)
    if path.exists() and (store.path / "metrics.jsonl").exists():
        changed = differences(yaml.safe_load(path.read_text()), yaml.safe_load(text))
        last_steps = f"stages.{len(config.stages) - 1}.steps"
        refused = [line for key, line in changed.items() if key != last_steps and not FREE.fullmatch(key)]
        if refused:
            raise ConfigError(
                f"{store.path} holds a run of another configuration ({'; '.join(refused[:3])}): "
                "choose another name, or give --overwrite to start anew"
            )
        if last_steps in changed:
            forget_end(store)
    write_atomic(path, text)
    write_manifest(store, {})


def write_manifest(store: RunStore, decoders: Mapping[str, str]) -> None:
    """What a run's results depend on beside its configuration and data."""
    manifest = {"versions": versions(), "decoders": decoders}
    write_atomic(store.path / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def forget_end(store: RunStore) -> None:
    """Remove what was measured after the last stage."""
    path = store.path / "evaluations.json"
    if path.exists():
        kept = {part: metrics for part, metrics in json.loads(path.read_text()).items() if part == "before"}
        write_atomic(path, json.dumps(kept, indent=1))
    for name in ("summary.json", TEST_TIME):
        (store.path / name).unlink(missing_ok=True)


def differences(old: Any, new: Any) -> dict[str, str]:
    """Lines of the form `key: old -> new`, by dotted key."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return {
        key: f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    }


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield prefix, value
        return
    for key, item in items:
        yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
