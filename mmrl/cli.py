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
data_app = typer.Typer(help="Look at data.", no_args_is_help=True)
app.add_typer(data_app, name="data")

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
def evaluate(
    config: ConfigPath,
    overrides: Overrides = None,
    checkpoint: CheckpointPath = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure this test-time strategy: a name of evaluate.test_time, or sparse-to-dense, "
            "resolution-ladder, vote, confidence-vote, best-of-k, greedy. May be given several times.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure a model on the configuration's held-out rows: greedily, or accuracy against cost of strategies."""
    from mmrl.config import load_config
    from mmrl.report.html import write_report
    from mmrl.train.play import evaluate_checkpoint

    loaded = load_config(config, overrides)
    run_dir = evaluate_checkpoint(loaded, checkpoint=checkpoint, strategies=strategy or [])
    report = write_report(run_dir, loaded.report.trajectories)
    _print_summary(run_dir / "summary.json")
    print(f"Report: {report}")


@app.command()
def answer(
    question: Annotated[str, typer.Argument(show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint of a run, any folder that transformers loads, or a hub's id.", show_default=False
        ),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="File; may be given several times.")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="File; may be given several times.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="File; may be given several times.")] = None,
    strategy: Annotated[
        str,
        typer.Option(help="greedy, vote, confidence-vote, best-of-k, sparse-to-dense, resolution-ladder, or your own."),
    ] = "greedy",
    fields: Annotated[
        list[str] | None, typer.Option("--set", help="Field of the strategy, e.g. samples=3.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of a run: its tools, system prompt, processors and limits.", show_default=False),
    ] = None,
) -> None:
    """Answer one question about images, videos and audio, and say what that took."""
    from mmrl.scaling.command import answer_question

    media: dict[Any, list[Path]] = {"image": image or [], "video": video or [], "audio": audio or []}
    for line in answer_question(question, media, model, config, strategy, fields or []):
        print(line)


@app.command("serve-engine")
def serve_engine(
    model: Annotated[str, typer.Argument(help="Folder or hub's id of the trainer's checkpoint.", show_default=False)],
    folder: Annotated[
        Path, typer.Option(help="Folder that the trainer sees too: its rollout.folder.", show_default=False)
    ],
    host: Annotated[str, typer.Option(help="Address that it listens on; any but this machine needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port that it listens on.")] = 8000,
    max_context: Annotated[
        int, typer.Option(min=1, help="Tokens of an episode: the trainer's max_context + max_turn_tokens.")
    ] = 4608,
    dtype: Annotated[str, typer.Option(help="Of the weights: the trainer's model.dtype.")] = "float32",
    token_env: Annotated[str, typer.Option(help="Environment variable that holds the token.")] = "MMRL_ENGINE_TOKEN",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Argument of vLLM, e.g. tensor_parallel_size=2.", show_default=False),
    ] = None,
) -> None:
    """Start a vLLM server that writes rollouts for a trainer elsewhere; name it in that one's rollout.servers.urls."""
    from mmrl.rollout.vllm_serve import serve

    serve(
        model,
        host=host,
        port=port,
        folder=folder,
        dtype=dtype,
        max_context=max_context,
        token_env=token_env,
        settings=settings or [],
    )


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


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Directory of a run, finished or not.", show_default=False)],
    to: Annotated[Path, typer.Option(help="Folder to write, new or empty.", show_default=False)],
    checkpoint: Annotated[str, typer.Option(help="last, best, or a folder's name in checkpoints/.")] = "last",
    adapter: Annotated[bool, typer.Option(help="Only what model.lora trained, in peft's format.")] = False,
) -> None:
    """Write a run's model as a folder that transformers and vLLM load; a LoRA adapter is merged into it."""
    from mmrl.train.export import export

    found = export(run, to, checkpoint=checkpoint, adapter=adapter)
    print(f"{'Adapter' if adapter else 'Model'} of {found.name}: {to}")


@config_app.command("show")
def show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the whole configuration, defaults and overrides included."""
    from mmrl.config import dump_config, load_config

    print(dump_config(load_config(config, overrides)), end="")


@data_app.command("check")
def check_data(
    file: Annotated[
        str, typer.Argument(help="File of rows (.jsonl, .json, .parquet) or a hub's id.", show_default=False)
    ],
    config: Annotated[
        Path | None, typer.Option(help="YAML file of a run: its processors, rewards and model.", show_default=False)
    ] = None,
    row_format: Annotated[
        str | None, typer.Option("--format", help="Format of the rows; by default chosen by their columns.")
    ] = None,
    media_root: Annotated[str | None, typer.Option(help="Folder of the media; by default the file's.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all bad rows to this file.")] = None,
) -> None:
    """Check every row: can it be read, shown, and scored? Ends with 1 where a row cannot."""
    from mmrl.config import load_config
    from mmrl.data.check import check_file, configured_file, write_report
    from mmrl.report.progress import Progress

    loaded = load_config(config) if config else None
    source = configured_file(file, loaded)
    changed = {"format": row_format, "media_root": media_root}
    source = source.model_copy(update={key: value for key, value in changed.items() if value is not None})
    with Progress() as progress:
        found = check_file(
            source,
            loaded,
            tell=progress.print,
            begin=lambda rows: progress.stage("check", rows),
            update=progress.update,
        )
    write_report(found, json_file)
    raise typer.Exit(1 if found.problems or not found.rows else 0)


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
