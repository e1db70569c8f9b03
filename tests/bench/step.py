"""One GRPO step (rollout and update) of mmrl beside one of TRL's GRPOTrainer, on one checkpoint and the same rows.

    python -m tests.bench.step --case 1300,8,32 --case 4096,16,32 --json step.json

Each framework has a process of its own; they take turns, A B A B, after a warm-up step each. A last step of each, which
is not timed, counts its operations. Without TRL (`pip install -e '.[bench]'`) mmrl is measured alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.checkpoint import SIZES, write_checkpoint
from tests.bench.table import gigaflops, mebibytes, seconds, table, write_json
from tests.bench.task import Case, Setup, write_rows
from tests.bench.turns import Side

PHASES = ("encode", "prefill", "decode", "update")


def main(argv: list[str] | None = None) -> None:
    options = parser().parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    results = []
    with tempfile.TemporaryDirectory() as root:
        write_checkpoint(SIZES[options.size], Path(root) / "model")
        for case in cases(options):
            write_rows(Path(root), case, options.repeats + 2)
            results.append(measure(setup(options, case, Path(root)), options.repeats) | facts(options))
            print(describe(results[-1]), flush=True)
            write_json(options.json, results)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tests.bench.step", description=__doc__.split("\n\n")[0])
    found.add_argument("--prompt-tokens", type=int, default=1300, help="about; the image takes nearly all of them")
    found.add_argument("--group-size", type=int, default=8)
    found.add_argument("--response-tokens", type=int, default=32, help="of every rollout: no end token is sampled")
    found.add_argument("--case", action="append", type=Case.parse, metavar="P,G,R", help="in place of the three above")
    found.add_argument("--repeats", type=int, default=5, help="timed steps of each framework")
    add_common(found)
    return found


def add_common(found: argparse.ArgumentParser) -> None:
    found.add_argument("--size", choices=SIZES, default="tiny")
    found.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    found.add_argument("--threads", type=int, default=2)
    found.add_argument("--freeze-vision", action="store_true", help="the vision tower is not trained")
    found.add_argument("--config", default="", help="name of this setting, written with the figures")
    found.add_argument("--json", type=Path, help="file for the figures")


def cases(options: argparse.Namespace) -> list[Case]:
    own = Case(
        prompt_tokens=options.prompt_tokens,
        group_size=options.group_size,
        response_tokens=options.response_tokens,
    )
    return [case.fitted() for case in options.case or [own]]


def setup(options: argparse.Namespace, case: Case, folder: Path) -> Setup:
    return Setup(
        case=case,
        folder=folder,
        freeze_vision=options.freeze_vision,
        threads=options.threads,
        dtype=SIZES[options.size].dtype,
        device=pick_device(options.device),
    )


def pick_device(device: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def facts(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "config": options.config,
        "size": options.size,
        "device": pick_device(options.device),
        "threads": options.threads,
        "freeze_vision": options.freeze_vision,
    }


def measure(setup: Setup, repeats: int) -> dict[str, Any]:
    """The figures of one case."""
    sides = start(setup)
    assert all(side.facts for side in sides.values())  # nobody is timed while another loads
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            step = side.step()
            steps[name].append(step)
            print(f"  {name} step {turn}: {step['step']:.2f} s, {step['cpu']:.2f} CPU seconds", flush=True)
    counted = {name: side.step("count") for name, side in sides.items()}
    for side in sides.values():
        side.stop()
    check_alike([step for taken in steps.values() for step in taken], setup.case)
    found = {name: figures(taken[1:], counted[name], sides[name].facts) for name, taken in steps.items()}
    return compare(found, setup.case)


def start(setup: Setup) -> dict[str, Side]:
    names = ["mmrl"]
    if find_spec("trl"):
        names.append("trl")
    else:
        print("TRL is not installed: mmrl alone (pip install -e '.[bench]' for both)")
    return {name: Side(f"tests.bench.{name}_side", setup) for name in names}


def check_alike(steps: list[dict[str, Any]], case: Case) -> None:
    """Both frameworks must have done the same work."""
    for step in steps:
        if step["prompt_tokens"] != case.prompt_tokens:
            raise SystemExit(f"a prompt of {step['prompt_tokens']} tokens, not {case}")
        if step["response_tokens"] != case.response_tokens:
            raise SystemExit(f"responses of {step['response_tokens']} tokens, not {case}")


def figures(steps: list[dict[str, Any]], counted: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """One framework's: medians over its timed steps, operations of the counted one."""
    times = sorted(step["step"] for step in steps)
    phases = {}
    for name in PHASES:
        taken = median(step[name] for step in steps)
        bound = counted[name] / counted["peak_flops"]
        phases[name] = {"seconds": taken, "flops": counted[name], "bound_s": bound, "of_peak": bound / (taken or 1.0)}
    return {
        "step_s": median(times),
        "step_s_range": [times[0], times[-1]],
        "rollout_s": median(step["rollout"] for step in steps),
        "update_s": median(step["update"] for step in steps),
        "cpu_s": median(step["cpu"] for step in steps),
        "flops": counted["step"],
        "phases": phases,
        "peak_bytes": max(step["peak_bytes"] for step in steps),
        "peak_flops": counted["peak_flops"],
        **facts,
    }


def compare(found: dict[str, dict[str, Any]], case: Case) -> dict[str, Any]:
    mine, other = found["mmrl"], found.get("trl")
    ideal = [side.pop("ideal_flops") for side in found.values()][0]
    tokens = case.group_size * (case.prompt_tokens + case.response_tokens)
    for side in found.values():
        side["tokens_per_s"] = tokens / side["step_s"]
    return {
        "prompt_tokens": case.prompt_tokens,
        "group_size": case.group_size,
        "response_tokens": case.response_tokens,
        "mmrl_s": mine["step_s"],
        "trl_s": other and other["step_s"],
        "speedup": other and other["step_s"] / mine["step_s"],
        "memory_ratio": other and mine["peak_bytes"] / other["peak_bytes"],
        "ideal_flops": ideal,
        **found,
    }


def describe(result: dict[str, Any]) -> str:
    """A case's figures as text."""
    sides = {name: result[name] for name in ("mmrl", "trl") if name in result}
    vision = "frozen" if result["freeze_vision"] else "trained"
    lines = [
        f"\n{result['prompt_tokens']} prompt tokens, G={result['group_size']}, {result['response_tokens']} response "
        f"tokens, vision tower {vision}, {result['size']} model on {result['device']}",
        table(("", *sides), [(title, *(show(side) for side in sides.values())) for title, show in LINES]),
    ]
    if "trl" in sides:
        lines.append(f"speedup {result['speedup']:.2f}x, {result['memory_ratio']:.3f} of the peak memory")
    return "\n\n".join([*lines, _phases(result, sides)])


LINES = (
    ("step, median", lambda side: seconds(side["step_s"])),
    ("step, range", lambda side: " - ".join(f"{value:.3g}" for value in side["step_s_range"]) + " s"),
    ("rollout", lambda side: seconds(side["rollout_s"])),
    ("update", lambda side: seconds(side["update_s"])),
    ("CPU seconds of a step", lambda side: seconds(side["cpu_s"])),
    ("tokens/s", lambda side: f"{side['tokens_per_s']:.0f}"),
    ("peak memory over the loaded model's", lambda side: mebibytes(side["peak_bytes"])),
    ("GFLOP counted", lambda side: gigaflops(side["flops"])),
    ("matmul peak, GFLOP/s", lambda side: gigaflops(side["peak_flops"])),
)


def _phases(result: dict[str, Any], sides: dict[str, dict[str, Any]]) -> str:
    """Each phase against the time that its operations would take at the machine's matmul peak."""
    rows = []
    for phase in PHASES:
        ideal = result["ideal_flops"][phase]
        rows.append((f"ideal {phase}", gigaflops(ideal), "", seconds(ideal / result["mmrl"]["peak_flops"]), "", ""))
        for name, side in sides.items():
            taken = side["phases"][phase]
            distance = taken["seconds"] / taken["bound_s"] if taken["bound_s"] else float("nan")
            rows.append(
                (
                    f"{name} {phase}",
                    gigaflops(taken["flops"]),
                    seconds(taken["seconds"]),
                    seconds(taken["bound_s"]),
                    f"{taken['of_peak']:.0%}",
                    f"{distance:.1f}x",
                )
            )
    return table(("phase", "GFLOP", "took", "bound", "of peak", "over bound"), rows)


if __name__ == "__main__":
    main()
