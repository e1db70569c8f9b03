"""Which format a file's rows have: forced by name, or chosen by the columns that they have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.data.readers.base import Reader
from mmrl.data.readers.easyr1 import EasyR1
from mmrl.data.readers.llava import Llava
from mmrl.data.readers.native import Native
from mmrl.data.readers.swift import Swift
from mmrl.data.readers.trl import Trl
from mmrl.data.readers.verl import Verl
from mmrl.data.readers.video_r1 import VideoR1
from mmrl.errors import DataError
from mmrl.resolve import suggest

READERS: dict[str, Reader] = {
    reader.name: reader for reader in (Native(), EasyR1(), Verl(), Swift(), Llava(), VideoR1(), Trl())
}
SAMPLED_ROWS = 32
"""Rows at the start of a file by which its format is chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A reader, and why it was chosen."""

    reader: Reader
    reason: str


def choose(rows: Sequence[dict[str, Any]], file: str, forced: str | None = None) -> Choice:
    """The reader of a file, by its first rows. DataError where none fits, or several fit equally well."""
    if forced is not None:
        if forced not in READERS:
            raise DataError(f"{file}: no format {forced!r}{suggest(forced, READERS)}; one of {', '.join(READERS)}")
        return Choice(reader=READERS[forced], reason="as configured")
    if not rows:
        return Choice(reader=READERS["native"], reason="no row can be read")
    union: dict[str, Any] = {}
    for row in rows:
        for key, value in row.items():
            if union.get(key) is None:
                union[key] = value
    clues = {name: reader.clues(union) for name, reader in READERS.items()}
    points = {name: sum(found.values()) for name, found in clues.items() if found}
    best = [name for name in points if points[name] == max(points.values())]
    if len(best) == 1:
        return Choice(reader=READERS[best[0]], reason=", ".join(clues[best[0]]))
    if not best:
        return _unknown(union, file)
    choices = "; ".join(f"{name} ({', '.join(clues[name])})" for name in best)
    raise DataError(f"{file}: the rows may be of several formats: {choices}; say which with 'format'")


def _unknown(union: dict[str, Any], file: str) -> Choice:
    known = "; ".join(f"{reader.name}: {reader.shape}" for reader in READERS.values())
    held = ", ".join(sorted(map(repr, union)))[:200]
    raise DataError(f"{file}: the columns {held} are of no known format ({known}); or say which with 'format'")
