"""Reads the rows of a file, or of a hub's data set, in whatever known format they are.

`mmrl/data/readers/native.py` states every key of mmrl's own rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from mmrl.data.files import RawRow, raw_rows
from mmrl.data.formats import SAMPLED_ROWS, choose
from mmrl.data.hub import hub_rows, is_hub_id
from mmrl.data.readers.base import Place
from mmrl.types import Sample


def read_rows(
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002 (the configuration's word)
    media_root: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[list[Sample], list[str]]:
    """(usable rows, one line per unusable row). DataError where the file itself cannot be read.

    Args:
        format: name of the rows' format; None chooses by their columns.
        media_root: folder that paths of media start from and may not leave; by default the file's.
        tell: is told which format was chosen, and why.
    """
    rows = _raw(path)
    first = list(islice(rows, SAMPLED_ROWS))
    choice = choose([row.columns for row in first if not row.error], str(path), format)
    tell(f"{path}: read as {choice.reader.name} ({choice.reason})")
    root = media_root or str(Path(path).parent)
    samples: list[Sample] = []
    errors: list[str] = []
    known: set[str] = set()
    for row in chain(first, rows):
        where = f"{path} row {row.number}"
        try:
            if row.error:
                raise ValueError(row.error)
            sample = choice.reader.read(row.columns, Place(root=root, where=where, number=row.number))
            _refuse_broken_text(sample)
            if sample.id in known:
                raise ValueError(f"id {sample.id!r} is used twice; give the row another")
        except (ValueError, RecursionError) as error:
            errors.append(f"{where}: {error}")
            continue
        known.add(sample.id)
        samples.append(sample)
    return samples, errors


def _refuse_broken_text(sample: Sample) -> None:
    """Lone surrogates, which JSON can spell, are no text: a tokenizer would raise in the middle of a run."""
    for message in (*sample.messages, *sample.demonstration):
        message.text.encode()
        for call in message.tool_calls:
            try:
                json.dumps([call.name, call.arguments], ensure_ascii=False).encode()
            except TypeError as error:
                raise ValueError(f"the arguments of a call are no JSON ({error})") from None


def _raw(path: str | Path) -> Iterator[RawRow]:
    if not Path(path).exists() and is_hub_id(str(path)):
        return hub_rows(str(path))
    return raw_rows(Path(path))
