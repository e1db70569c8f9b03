"""The command line. Heavy libraries are imported by the command that needs them, so that help answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mmrl.errors import MmrlError, StoppedError

app = typer.Typer(
    help="Train, evaluate and run multimodal reasoners with verifiable rewards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
app.add_typer(config_app, name="config")

ConfigPath = Annotated[Path, typer.Argument(help="YAML file of the run.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changed keys: stages.1.steps=100 seed=1", show_default=False)
]
CheckpointPath = Annotated[
    Path | None,
    typer.Option(help="Checkpoint of a run, or any folder that transformers loads.", show_default=False),
]


@app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option(help="Remove an earlier run of this name first.")] = False,
) -> None:
    """Train a model; the same command continues a run that was stopped."""
    from mmrl.config import load_config
    from mmrl.report.html import write_report
    from mmrl.train.run import train

    loaded = load_config(config, overrides)
    run_dir = train(loaded, overwrite=overwrite)
    report = write_report(run_dir, loaded.report.trajectories)
    _print_summary(run_dir / "summary.json")
    print(f"Report: {report}")


@app.command()
def rollout(
    config: ConfigPath,
    overrides: Overrides = None,
    checkpoint: CheckpointPath = None,
    rows: Annotated[str | None, typer.Option(help="File of rows; by default the held-out ones.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows used.")] = 8,
    group: Annotated[int, typer.Option(min=1, help="Rollouts of each row.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 1.0,
) -> None:
    """Play rows and show what the model did."""
    from mmrl.config import load_config
    from mmrl.report.html import write_report
    from mmrl.train.play import rollout

    loaded = load_config(config, overrides)
    run_dir = rollout(loaded, checkpoint=checkpoint, rows=rows, limit=limit, group_size=group, temperature=temperature)
    print(f"Rollouts: {run_dir / 'rollouts' / 'stream.jsonl'}")
    print(f"Report: {write_report(run_dir, limit * group)}")


@app.command("eval")
def evaluate(config: ConfigPath, overrides: Overrides = None, checkpoint: CheckpointPath = None) -> None:
    """Measure a model on the configuration's held-out rows, greedily."""
    from mmrl.config import load_config
    from mmrl.report.html import write_report
    from mmrl.train.play import evaluate_checkpoint

    loaded = load_config(config, overrides)
    run_dir = evaluate_checkpoint(loaded, checkpoint=checkpoint)
    report = write_report(run_dir, loaded.report.trajectories)
    _print_summary(run_dir / "summary.json")
    print(f"Report: {report}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Directory of a run, finished or not.", show_default=False)],
    trajectories: Annotated[int, typer.Option(min=0, help="Shown of each file of rollouts, at most.")] = 40,
) -> None:
    """Write the report of a run anew from its files."""
    from mmrl.report.html import write_report

    if not (run / "config.yaml").is_file():
        raise MmrlError(f"{run}: holds no run; name a directory such as runs/quickstart")
    print(f"Report: {write_report(run, trajectories)}")


@config_app.command("show")
def show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the whole configuration, defaults and overrides included."""
    from mmrl.config import dump_config, load_config

    print(dump_config(load_config(config, overrides)), end="")


@app.command()
def doctor() -> None:
    """Say what is installed, what works, and how to mend the rest."""
    from mmrl.doctor import check

    problems = check(Console())
    raise typer.Exit(1 if problems else 0)


def main() -> None:
    """Run the command line; what a user can mend is one line, without a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except MmrlError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(130 if isinstance(error, StoppedError) else 2)
    except KeyboardInterrupt:
        print("interrupted; what was written stays, and the same command continues", file=sys.stderr)
        sys.exit(130)


def _print_summary(path: Path) -> None:
    import json

    from mmrl.report.summary import summary_table

    if path.exists():
        values: dict[str, Any] = json.loads(path.read_text())
        Console().print(summary_table(values))


if __name__ == "__main__":
    main()
