"""Strategies by name, for the command line and for configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.config import Plugin
from mmrl.errors import ConfigError
from mmrl.resolve import build, suggest
from mmrl.scaling.strategy import Strategy

NAMES = {
    "greedy": "mmrl.scaling.one_look:Greedy",
    "vote": "mmrl.scaling.one_look:Vote",
    "confidence-vote": "mmrl.scaling.one_look:ConfidenceVote",
    "best-of-k": "mmrl.scaling.one_look:BestOfK",
    "sparse-to-dense": "mmrl.scaling.ladders:SparseToDense",
    "resolution-ladder": "mmrl.scaling.ladders:ResolutionLadder",
}


def build_strategy(use: str, fields: Mapping[str, Any], where: str) -> Strategy:
    """A strategy by short name or import path, its fields checked; `where` is the option or key, for errors."""
    if ":" not in use and use not in NAMES:
        raise ConfigError(
            f"{where}: no strategy {use!r}{suggest(use, NAMES)}; there are {', '.join(NAMES)}, "
            "and your own as 'path/to/file.py:Name'"
        )
    strategy: Strategy = build(NAMES.get(use, use), fields, where)
    for needed in ("look", "decide"):
        if not hasattr(strategy, needed):
            raise ConfigError(f"{where}: {use} is not a strategy: it has no {needed!r}")
    return strategy


def build_strategies(configured: Mapping[str, Plugin], names: Sequence[str] = ()) -> dict[str, Strategy]:
    """Strategies by name: all that a configuration's evaluate.test_time names, or those of `names`.

    A name that the configuration does not have is a short name or an import path, with the strategy's own defaults.
    """
    chosen = {name: configured.get(name, Plugin(use=name)) for name in names} or configured
    return {
        name: build_strategy(
            plugin.use, plugin.fields, f"evaluate.test_time.{name}" if name in configured else "--strategy"
        )
        for name, plugin in chosen.items()
    }
