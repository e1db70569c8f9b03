"""Lines of a run's rollouts, as the report reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Line = Mapping[str, Any]
MEDIUM = {"kind": "image", "times": (), "span": None, "source": None, "file": None, "frames": (), "envelope": ()}
REGION = {"box": None, "span": None, "times": ()}
GOLD = {"answer": None, "boxes": (), "points": (), "spans": (), "track": ()}
RUNG = {"number": 0, "title": "", "accepted": None, "votes": None, "frames": None, "tokens": None}


def complete(line: Line) -> Line:
    """The line with every key that the report reads: earlier versions wrote fewer."""
    turns = [{**turn, "regions": [{**REGION, **region} for region in turn["regions"]]} for turn in line["turns"]]
    media = {key: {**MEDIUM, **medium} for key, medium in line["media"].items()}
    rung = {**RUNG, **line["rung"]} if line.get("rung") else None
    return {**line, "turns": turns, "media": media, "gold": {**GOLD, **line["gold"]}, "rung": rung}


def ancestors(line: Line, key: str) -> Iterator[str]:
    """Keys of the media that a medium was cut from, the nearest first."""
    walked = {key}
    while (key := line["media"][key]["parent"]) in line["media"] and key not in walked:
        walked.add(key)
        yield key


def has_gold(line: Line, key: str) -> bool:
    """Whether gold places and times speak of this medium: of the sample's first one, its parts and its sound."""
    first = next((key for segment in line["segments"] for key in segment["media"]), key)
    source = line["media"][key]["source"]
    return first in (key, *ancestors(line, key)) or (source is not None and source == line["media"][first]["source"])
