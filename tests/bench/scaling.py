"""How mmrl's update, its step and their memory grow with the prompt, the group and the frames of a video.

    python -m tests.bench.scaling --padded --json scaling.json
    python -m tests.bench.scaling --table prompt --table group

An update is measured by itself: features are there, responses are random ids. `--padded` also measures every case in
which each row carries its own prompt, where that is not far too long. A step is a whole GRPO step on an image.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.checkpoint import SIZES, write_checkpoint
from tests.bench.step import PHASES, add_common, facts, setup
from tests.bench.table import gigaflops, mebibytes, seconds, table, write_json
from tests.bench.task import Case, Update, Way, write_rows
from tests.bench.turns import Side

FRAME_TOKENS = 32
"""Vision tokens of a frame."""
FRAMES = (8, 64, 256, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One line of a table."""

    case: Case
    frames: int | None = None
    compare: bool = False
    """Measured in both ways, whether or not that was asked for."""


def updates(name: str) -> list[Point]:
    """The lines of a table of updates."""
    if name == "prompt":
        return [_point(tokens, 8, 32, compare=tokens == 4096) for tokens in (512, 1024, 2048, 4096, 8192, 16384, 32768)]
    if name == "group":
        return [_point(8192, group, 16) for group in (2, 4, 8, 16, 32)]
    return [_point(32 + frames * FRAME_TOKENS, 8, 32, frames=frames) for frames in FRAMES]


def _point(prompt: int, group: int, response: int, *, frames: int | None = None, compare: bool = False) -> Point:
    case = Case(prompt_tokens=prompt, group_size=group, response_tokens=response)
    return Point(case=case, frames=frames, compare=compare)


STEPS = tuple(Case(prompt_tokens=tokens, group_size=8, response_tokens=32) for tokens in (512, 1024, 2048, 4096))
TABLES = ("prompt", "group", "frames", "step")


def main(argv: list[str] | None = None) -> None:
    options = parser().parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        write_checkpoint(SIZES[options.size], Path(root) / "model")
        for name in options.table or (["prompt"] if options.case else TABLES):
            found = []
            for result in rows(name, options, Path(root)):
                found.append(result | {"table": name} | facts(options))
                write_json(options.json, results + found)
            results += found
            print(f"\n{TITLES[name]}\n\n{describe(found)}", flush=True)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tests.bench.scaling", description=__doc__.split("\n\n")[0])
    found.add_argument(
        "--table", action="append", choices=TABLES, help="which tables; all by default, and one for --case"
    )
    found.add_argument(
        "--case", action="append", type=Case.parse, metavar="P,G,R", help="updates in place of a table's"
    )
    found.add_argument("--max-tokens", type=int, default=1 << 16, help="longest prompt that is measured")
    found.add_argument("--padded", action="store_true", help="measure the padded way too")
    found.add_argument("--padded-tokens", type=int, default=1 << 17, help="of all rows, up to which it is measured")
    found.add_argument("--frames", action="append", type=int, choices=FRAMES, help="lines of the table of frames")
    found.add_argument(
        "--no-count", action="store_true", help="count no operations: counted attention holds its square"
    )
    found.add_argument("--checkpointing", action="store_true", help="compute activations again in the backward")
    found.add_argument("--repeats", type=int, default=3, help="timed updates or steps of each case")
    add_common(found)
    return found


def rows(name: str, options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """The figures of each line of a table, as they come."""
    if name == "step":
        for case in STEPS:
            if case.prompt_tokens <= options.max_tokens:
                yield measure_step(case.fitted(), options, folder)
        return
    points = [Point(case=case) for case in options.case] if options.case else updates(name)
    for point in points:
        wanted = not options.frames or point.frames in (None, *options.frames)
        if wanted and point.case.prompt_tokens <= options.max_tokens:
            for way in ways(point, options.padded_tokens if options.padded else 0):
                yield measure_update(point, way, options, folder)


def ways(point: Point, padded_tokens: int) -> list[Way]:
    """The ways of the engine that are compared. Attention kernels that can be chosen by name belong here too."""
    tokens = point.case.group_size * (point.case.prompt_tokens + point.case.response_tokens)
    both = point.compare or tokens <= padded_tokens
    return ["shared", "padded"] if both else ["shared"]


def measure_update(point: Point, way: Way, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    base = asdict(setup(options, point.case, folder)) | {"case": point.case, "freeze_vision": True}
    update = Update(**base, way=way, frames=point.frames, checkpointing=options.checkpointing)
    steps, counted = run(Side("tests.bench.update_side", update), options.repeats, count=not options.no_count)
    return figures(point.case, steps, counted) | {"way": way, "frames": point.frames}


def measure_step(case: Case, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    write_rows(folder, case, options.repeats + 2)
    steps, counted = run(Side("tests.bench.mmrl_side", setup(options, case, folder)), options.repeats + 1)
    phases = {f"{name}_s": median(step[name] for step in steps[1:]) for name in PHASES}
    return figures(case, steps[1:], counted) | {"way": "shared", "frames": None} | phases


def run(side: Side, repeats: int, *, count: bool = True) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(timed steps, the one that is counted)."""
    steps = [side.step() for _ in range(repeats)]
    counted = side.step("count") if count else {"step": 0.0, "peak_flops": float("inf")}
    side.stop()
    return steps, counted


def figures(case: Case, steps: list[dict[str, Any]], counted: dict[str, Any]) -> dict[str, Any]:
    times = sorted(step["step"] for step in steps)
    return {
        "prompt_tokens": case.prompt_tokens,
        "group_size": case.group_size,
        "response_tokens": case.response_tokens,
        "seconds": median(times),
        "seconds_range": [times[0], times[-1]],
        "cpu_s": median(step["cpu"] for step in steps),
        "flops": counted["step"],
        "peak_flops": counted["peak_flops"],
        "peak_bytes": max(step["peak_bytes"] for step in steps),
    }


TITLES = {
    "prompt": "Update by prompt length",
    "group": "Update by group size",
    "frames": f"Update by frames of a video, {FRAME_TOKENS} tokens each",
    "step": "Whole step by prompt length",
}


def describe(results: list[dict[str, Any]]) -> str:
    head = ("prompt", "frames", "G", "R", "way", "seconds", "range", "CPU", "peak memory", "GFLOP", "of matmul peak")
    return table(head, [_line(result) for result in results])


def _line(result: dict[str, Any]) -> tuple[str, ...]:
    bound = result["flops"] / result["peak_flops"]
    return (
        str(result["prompt_tokens"]),
        str(result["frames"] or ""),
        str(result["group_size"]),
        str(result["response_tokens"]),
        result["way"],
        seconds(result["seconds"]),
        " - ".join(f"{value:.3g}" for value in result["seconds_range"]),
        seconds(result["cpu_s"]),
        mebibytes(result["peak_bytes"]),
        gigaflops(result["flops"]),
        f"{bound / result['seconds']:.0%}",
    )


if __name__ == "__main__":
    main()
