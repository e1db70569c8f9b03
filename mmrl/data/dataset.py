"""Rows with their media, and the account of the rows that cannot be used."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from mmrl.cache.media import MediaLoader
from mmrl.config import DataSection, Plugin
from mmrl.data.gold import settle
from mmrl.data.prompt import KINDS
from mmrl.data.rows import read_rows
from mmrl.data.sampler import Sampler
from mmrl.errors import DataError, MediaError
from mmrl.models.fitting import fitted
from mmrl.protocols import ModelFamily, Processor
from mmrl.report.store import append_line, encode, read_lines, write_atomic
from mmrl.resolve import build
from mmrl.types import Media, MediaKind, MediaRef, Sample


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

    @cached_property
    def listed(self) -> set[str]:
        """What the list holds of a run that this one goes on with; a torn last line is cut off."""
        if not self.path.exists():
            return set()
        lines = list(read_lines(self.path))
        write_atomic(self.path, "".join(map(encode, lines)))
        return {line["error"] for line in lines}

    def add(self, error: str, file: str, num_rows: int) -> None:
        """Note one bad row of a file of `num_rows`; DataError when the share is too large."""
        if error in self.known:
            return
        self.known.add(error)
        self.count += 1
        self.by_file[file] += 1
        self.tell(f"skipped: {error}")
        if error not in self.listed:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.path, {"error": error})
        if self.by_file[file] > self.max_fraction * num_rows:
            raise DataError(
                f"{self.by_file[file]} of {num_rows} rows cannot be used, more than data.max_bad_fraction = "
                f"{self.max_fraction} allows; {self.path} lists them"
            )


def build_processors(section: DataSection, family: ModelFamily | None) -> dict[MediaKind, Processor]:
    """What loads each kind of medium, as configured, at sizes that the family's tower takes."""
    processors: dict[MediaKind, Processor] = {}
    for kind in KINDS:
        plugin: Plugin = getattr(section, kind)
        processor = build(plugin.use, plugin.fields, f"data.{kind}")
        processors[kind] = fitted(processor, plugin.fields, family) if family else processor
    return processors


class RowSource(Protocol):
    """What a stage draws from: one file or several."""

    def __len__(self) -> int: ...

    def load(self, index: int, media: MediaLoader | None = None) -> Loaded | None:
        """The row with its media, loaded by `media` where that is given; None for a row that cannot be used."""
        ...

    def refs(self, index: int) -> tuple[MediaRef, ...]:
        """Where the row's media come from."""
        ...

    def refuse(self, index: int, reason: str) -> None: ...

    def sampler(self, seed: int) -> Sampler: ...


class Dataset:
    """The usable rows of a file.

    Args:
        format: name of the rows' format; None chooses by their columns.
        media_root: folder that media lie in; by default the file's.
        limit: rows used, from the start of the file.
        tell: is told which format was chosen.
    """

    def __init__(
        self,
        path: str | Path,
        media: MediaLoader,
        bad: BadRows,
        *,
        format: str | None = None,  # noqa: A002 (the configuration's word)
        media_root: str | None = None,
        limit: int | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        samples, errors = read_rows(path, format=format, media_root=media_root, tell=tell)
        self.samples: Sequence[Sample] = samples[:limit]
        self.media, self.bad = media, bad
        self.path, self.num_rows = str(path), len(samples) + len(errors)
        for error in errors:
            bad.add(error, self.path, self.num_rows)
        if not self.samples:
            raise DataError(f"{path}: holds no usable row")

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int, media: MediaLoader | None = None) -> Loaded | None:
        """The row with its media, or None for a row that cannot be used: it is counted and told."""
        try:
            return load_sample(self.samples[index], media or self.media)
        except (MediaError, DataError) as error:
            self.refuse(index, str(error))
            return None

    def refs(self, index: int) -> tuple[MediaRef, ...]:
        return self.samples[index].media

    def refuse(self, index: int, reason: str) -> None:
        """Count a row as one that cannot be used."""
        sample = self.samples[index]
        self.bad.add(f"{sample.where} (id {sample.id}): {reason}", self.path, self.num_rows)

    def sampler(self, seed: int) -> Sampler:
        return Sampler(len(self), seed)


class Mixture:
    """Several files, drawn in proportion to their weights. Indices count through the files in order."""

    def __init__(self, parts: Sequence[Dataset], weights: Sequence[float]) -> None:
        self.parts, self.weights = parts, weights
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def load(self, index: int, media: MediaLoader | None = None) -> Loaded | None:
        part, place = self._find(index)
        return part.load(place, media)

    def refs(self, index: int) -> tuple[MediaRef, ...]:
        part, place = self._find(index)
        return part.refs(place)

    def refuse(self, index: int, reason: str) -> None:
        part, place = self._find(index)
        part.refuse(place, reason)

    def sampler(self, seed: int) -> Sampler:
        return Sampler([len(part) for part in self.parts], seed, self.weights)

    def _find(self, index: int) -> tuple[Dataset, int]:
        number = bisect_right(self._ends, index)
        part = self.parts[number]
        return part, index - self._ends[number] + len(part)


def load_sample(sample: Sample, media: MediaLoader) -> Loaded:
    """The row with its media; MediaError or DataError says why it cannot be used."""
    loaded = tuple(media.load(ref) for ref in sample.media)
    return Loaded(sample=settle(sample, loaded), media=loaded)
