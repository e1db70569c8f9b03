"""Raw rows of a file: JSON lines, a JSON list, or parquet. What a row means is a reader's business."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl.errors import DataError

BATCH_ROWS = 64
"""Rows of a parquet file that are decoded together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRow:
    """A row as the file holds it, or why it cannot be read."""

    number: int
    columns: dict[str, Any]
    error: str = ""


def raw_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a .jsonl, .json or .parquet file, numbered from 0. DataError where the file cannot be read."""
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".json" and _opens_list(path):
            yield from _json_list(path)
        else:
            yield from _json_lines(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None


def _json_lines(path: Path) -> Iterator[RawRow]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file):
            if line.strip():
                yield _parsed(line, number)


def _parsed(line: str, number: int) -> RawRow:
    try:
        return _row(json.loads(line), number)
    except (ValueError, RecursionError) as error:
        return RawRow(number=number, columns={}, error=str(error))


def _row(value: object, number: int) -> RawRow:
    if not isinstance(value, dict):
        return RawRow(number=number, columns={}, error="not a JSON object")
    return RawRow(number=number, columns=value)


def _opens_list(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.read(4096).lstrip().startswith("[")


def _json_list(path: Path) -> Iterator[RawRow]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); one object a line in a .jsonl file also works") from None
    for number, value in enumerate(rows):
        yield _row(value, number)


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for row in batch.to_pylist():
                    # Every row of a table has every column: an empty cell is a key that the row lacks.
                    yield RawRow(number=number, columns={key: cell for key, cell in row.items() if cell is not None})
                    number += 1
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable parquet file ({' '.join(str(error).split())[:200]})") from None
