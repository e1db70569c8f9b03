"""Rows with their media, and the account of the rows that cannot be used."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrl.boxes import valid_box
from mmrl.data.rows import read_rows
from mmrl.errors import DataError, MediaError
from mmrl.protocols import Processor
from mmrl.types import Media, MediaRef, Sample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """A row with its media decoded."""

    sample: Sample
    media: tuple[Media, ...]


class BadRows:
    """Counts rows that cannot be used, lists them in a file, and stops the run when there are too many."""

    def __init__(self, path: Path, max_fraction: float, tell: Callable[[str], None]) -> None:
        self.path, self.max_fraction, self.tell = path, max_fraction, tell
        self.count = 0
        self.by_file: Counter[str] = Counter()
        self.known: set[str] = set()

    def add(self, error: str, file: str, num_rows: int) -> None:
        """Note one bad row of a file of `num_rows`; DataError when the share is too large."""
        if error in self.known:
            return
        self.known.add(error)
        self.count += 1
        self.by_file[file] += 1
        self.tell(f"skipped: {error}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", errors="replace") as lines:
            lines.write(json.dumps({"error": error}) + "\n")
        if self.by_file[file] > self.max_fraction * num_rows:
            raise DataError(
                f"{self.by_file[file]} of {num_rows} rows cannot be used, more than data.max_bad_fraction = "
                f"{self.max_fraction} allows; {self.path} lists them"
            )


class Dataset:
    """The usable rows of a file.

    Args:
        cached: decoded images that are kept.
        limit: rows used, from the start of the file.
    """

    def __init__(
        self, path: str | Path, image: Processor, bad: BadRows, *, cached: int, limit: int | None = None
    ) -> None:
        samples, errors = read_rows(path)
        self.samples: Sequence[Sample] = samples[:limit]
        self.image, self.bad, self.cached = image, bad, cached
        self.path, self.num_rows = str(path), len(samples) + len(errors)
        self._cache: OrderedDict[MediaRef, Media] = OrderedDict()
        for error in errors:
            bad.add(error, self.path, self.num_rows)
        if not self.samples:
            raise DataError(f"{path}: holds no usable row")

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int) -> Loaded | None:
        """The row with its media, or None for a row that cannot be used: it is counted and told."""
        sample = self.samples[index]
        try:
            media = tuple(self._media(ref) for ref in sample.media)
            _check_boxes(sample, media)
        except (MediaError, DataError) as error:
            self.refuse(sample, str(error))
            return None
        return Loaded(sample=sample, media=media)

    def refuse(self, sample: Sample, reason: str) -> None:
        """Count a row as one that cannot be used."""
        self.bad.add(f"{sample.where} (id {sample.id}): {reason}", self.path, self.num_rows)

    def _media(self, ref: MediaRef) -> Media:
        found = self._cache.pop(ref, None) or self.image.load(ref)
        self._cache[ref] = found
        if len(self._cache) > self.cached:
            self._cache.popitem(last=False)
        return found


def _check_boxes(sample: Sample, media: Sequence[Media]) -> None:
    for number, box in enumerate(sample.gold.boxes):
        if not media:
            raise DataError(f"boxes.{number}: the row has a gold box but no image")
        inside, reason = valid_box(box, media[0].frame.original)
        if inside is None:
            raise DataError(f"boxes.{number}: gold {reason} of {media[0].frame.original}; correct the row")
