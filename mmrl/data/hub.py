"""Data sets of a hub, by the `datasets` package where that is installed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

from mmrl.data.files import RawRow
from mmrl.errors import DataError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name or owner/name:split, and no ending of a file."""
    return HUB_ID.fullmatch(name) is not None and not name.endswith((".jsonl", ".json", ".parquet"))


def hub_rows(name: str) -> Iterator[RawRow]:
    """The rows of a data set's split ("train" by default), media as their encoded bytes."""
    path, _, split = name.partition(":")
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise DataError(
            f"{name}: no such file; to read it from a hub, install the package 'datasets' (pip install datasets)"
        ) from None
    try:
        rows = datasets.load_dataset(path, split=split or "train")
    except Exception as error:  # no network, no such data set, no such split: the hub's client raises many kinds
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: no such file, and no hub gives it ({type(error).__name__}: {text})") from None
    for number, row in enumerate(_encoded(rows, datasets)):
        yield RawRow(number=number, columns={key: cell for key, cell in row.items() if cell is not None})


def _encoded(rows: Any, datasets: Any) -> Any:
    """The rows with every column of media, and of lists of media, left encoded."""
    kinds = tuple(getattr(datasets, kind) for kind in ("Image", "Audio", "Video") if hasattr(datasets, kind))
    for key, feature in rows.features.items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, kinds):
            kind: Any = type(inner)
            plain = kind(decode=False)
            rows = rows.cast_column(key, plain if inner is feature else type(feature)(plain))
    return rows
