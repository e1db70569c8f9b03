"""One GRPO step of mmrl, as a training run does it, with its log."""

from __future__ import annotations

from mmrl.config import RunConfig
from mmrl.report.progress import Progress
from mmrl.report.store import RunStore
from mmrl.train.run import Run
from tests.bench.task import MAX_PIXELS, Setup
from tests.bench.turns import Turns


def serve(turns: Turns) -> None:
    config = run_config(turns.setup)
    with Progress() as progress:
        run = Run(config, RunStore(config.run_dir), progress)
        active = run._activate(0, config.stages[0], None)
        progress.stage(active.name, 1, 0)
        family = run.session.checkpoint.family
        family.reserved_ids = (*family.reserved_ids, *family.eos_ids)  # every response has the full length
        phases = turns.ready(run.session.checkpoint.model, outside="rollout")
        phases.wrap(active.stage.engine, "update", "update")
        step = 0
        while turns.wait():
            metrics = run._step(active, step)
            step += 1
            length = metrics["response_tokens"]  # no response is longer than the others: the mean is that of each
            turns.done(prompt_tokens=metrics["tokens"] / turns.setup.case.group_size - length, response_tokens=length)
        active.stage.close()


def run_config(setup: Setup) -> RunConfig:
    """Every key that is not named has its default."""
    stage = {
        "type": "grpo",
        "rows": str(setup.folder / "rows.jsonl"),
        "steps": 1000,  # a step is not the last: its successor's images are decoded meanwhile
        "prompts_per_step": 1,
        "group_size": setup.case.group_size,
        "freeze": ["model.visual.*"] if setup.freeze_vision else [],
        "optimizer": {"lr": setup.learning_rate},
    }
    return RunConfig.model_validate(
        {
            "name": "bench",
            "runs_dir": str(setup.folder / "runs"),
            "threads": setup.threads,
            "model": {"path": str(setup.folder / "model"), "dtype": setup.dtype, "device": setup.device},
            "data": {"image": {"use": "mmrl.processors.image:Image", "max_pixels": MAX_PIXELS}},
            "episode": {
                "max_turn_tokens": setup.case.response_tokens,
                "max_context": 2 * (setup.case.prompt_tokens + setup.case.response_tokens),
            },
            "rewards": [{"use": "tests.bench.reward:Checksum"}],
            "stages": [stage],
        }
    )
