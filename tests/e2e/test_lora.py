"""Runs that train an adapter or bfloat16 weights: resumed to the bit, measured and exported as they were trained."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from mmrl.cli import app
from mmrl.errors import ConfigError
from mmrl.models.load import load_checkpoint
from mmrl.models.lora import adapter_parameters
from mmrl.train.export import export
from mmrl.train.play import evaluate_checkpoint
from mmrl.train.run import train

SHORT = (
    "stages.0.steps=2",
    "stages.0.examples_per_step=2",
    "stages.1.steps=3",
    "evaluate.limit=4",
    "evaluate.without_tools=false",
    "checkpoint.every=2",
)
LORA = ("model.lora={rank: 4, alpha: 8}", "stages.0.optimizer.lr=0.02", "stages.1.optimizer.lr=0.01")
VISION = "model.lora.targets=['*.q_proj', 'model.visual.*.qkv']"
BFLOAT16 = "model.dtype=bfloat16"
KINDS = {"lora": LORA, "bfloat16": (BFLOAT16,), "vision": (*LORA, VISION, BFLOAT16)}
# Tells every rollout of an untrained model from its siblings; kills the process in its third step.
REWARD = """
import os
from dataclasses import dataclass
from mmrl.types import Score

@dataclass(frozen=True, kw_only=True)
class Sum:
    kill: int = 0
    marker: str = ""

    async def score(self, group, context):
        if context.step == 2 and self.kill and not os.path.exists(self.marker):
            open(self.marker, "w").close()
            os.kill(os.getpid(), self.kill)
        return [Score.of(sum(t.segments[-1].ids) % 7) for t in group.trajectories]
"""


@pytest.fixture
def config(load, workspace):
    """config(name, *overrides, kill=0) is a run of 3 GRPO steps behind 2 of SFT; `kill` is sent in the third."""
    (workspace / "sum.py").write_text(REWARD)

    def make(name, *overrides, kill=0):
        marker = workspace / f"{name}.killed"
        reward = f"rewards.0={{use: sum.py:Sum, name: accuracy, kill: {int(kill)}, marker: {marker}}}"
        return load(f"name={name}", reward, *SHORT, *overrides)

    return make


@pytest.fixture(scope="session")
def _runs():
    return {}


@pytest.fixture
def straight(config, _runs):
    """straight(kind) is the configuration of an undisturbed run of this kind, which has run."""

    def run(kind):
        if kind not in _runs:
            _runs[kind] = config(f"straight-{kind}", *KINDS[kind])
            train(_runs[kind])
        return _runs[kind]

    return run


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def load_plain(path):
    return load_checkpoint(path, family=None, dtype="float32", device="cpu")


def outcome(run_dir):
    """Everything that a run computed, without its clock."""
    last = (run_dir / "checkpoints" / "last").resolve()
    files = [last / "optimizer.safetensors", *sorted((last / "model").glob("*.safetensors"))]
    timed = ("time", "tokens_per_second")
    metrics = [{k: v for k, v in line.items() if k not in timed and "seconds" not in k} for line in lines(run_dir)]
    summary = json.loads((run_dir / "summary.json").read_text())
    return {
        **{file.name: file.read_bytes() for file in files},
        "metrics": metrics,
        "rollouts": (run_dir / "rollouts" / "stream.jsonl").read_text(),
        "summary": {k: v for k, v in summary.items() if k != "train_seconds"},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_to_the_same_bits(config, straight, workspace, kind):
    expected = outcome(straight(kind).run_dir)
    killed = config(f"killed-{kind}", *KINDS[kind], kill=signal.SIGKILL)
    (workspace / "killed.yaml").write_text(json.dumps(killed.model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, "-m", "mmrl.cli", "train", "killed.yaml"]
    assert subprocess.run(command, cwd=workspace, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert len(lines(killed.run_dir)) == 4  # two of sft, two of grpo
    train(killed)
    found = outcome(killed.run_dir)
    assert found.keys() == expected.keys()
    for part, value in expected.items():
        assert found[part] == value, part
    assert all(line["grad_norm"] > 0 for line in lines(killed.run_dir))


def test_a_checkpoint_holds_the_adapter_alone_and_the_base_is_not_touched(straight):
    run = straight("lora")
    last = run.run_dir / "checkpoints" / "last"
    for folder in (last / "model", run.run_dir / "reference" / "grpo"):
        assert [file.name for file in folder.glob("*.safetensors")] == ["adapter_model.safetensors"]
        assert not (folder / "config.json").exists()
    trained = load_plain(last / "model")
    base = load_plain(run.model_path)
    weights = dict(base.model.named_parameters())
    for name, value in trained.model.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(value, weights[name.replace(".base_layer", "")]), name
    learned = [value.abs().max() for name, value in adapter_parameters(trained.model).items() if "lora_B" in name]
    assert min(learned) > 1e-3


@pytest.mark.parametrize("kind", ["lora", "vision"])
def test_the_policy_starts_at_its_reference_whatever_was_learned_before(config, straight, kind):
    """A KL penalty has no value and no slope there: the first step is as without it, and the later ones are not."""
    strong = lines(train(config(f"strong-{kind}", *KINDS[kind], "stages.1.kl_beta=5", "stages.1.steps=2")))
    free = lines(train(config(f"free-{kind}", *KINDS[kind], "stages.1.kl_beta=0", "stages.1.steps=2")))
    assert strong[2]["loss"] == pytest.approx(free[2]["loss"], abs=1e-6)
    assert strong[2]["grad_norm"] == pytest.approx(free[2]["grad_norm"], rel=1e-4)
    assert strong[3]["loss"] > free[3]["loss"] + 1e-4


def test_eval_of_a_checkpoint_gives_the_numbers_of_the_run(straight):
    run = straight("lora")
    expected = json.loads((run.run_dir / "summary.json").read_text())
    result = evaluate_checkpoint(run, checkpoint=run.run_dir / "checkpoints" / "last")
    found = json.loads((result / "summary.json").read_text())
    assert found["tools"] == expected["after"]


def test_a_question_is_answered_by_an_adapter(straight, tmp_path):
    from PIL import Image

    Image.new("RGB", (112, 112), (200, 30, 30)).save(tmp_path / "red.png")
    last = straight("lora").run_dir / "checkpoints" / "last"
    result = CliRunner().invoke(app, ["answer", "Which?", "--model", str(last), "--image", str(tmp_path / "red.png")])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Answer: ")


def test_the_export_is_loaded_by_transformers_and_computes_the_same(straight, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    run = straight("lora")
    to = tmp_path / "out" / "merged"
    result = CliRunner().invoke(app, ["export", str(run.run_dir), "--to", str(to)])
    assert result.output == f"Model of 01-grpo-000003: {to}\n"
    theirs = AutoModelForImageTextToText.from_pretrained(to, dtype=torch.float32)
    ours = load_plain(run.run_dir / "checkpoints" / "last" / "model").model
    assert_same_logits(ours, theirs, AutoProcessor.from_pretrained(to))
    assert not (to.parent / "merged.part").exists()


def test_the_exported_adapter_is_loaded_by_peft_and_computes_the_same(straight, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    run = straight("lora")
    export(run.run_dir, tmp_path / "adapter", adapter=True)
    base = AutoModelForImageTextToText.from_pretrained(run.model_path, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter")
    ours = load_plain(run.run_dir / "checkpoints" / "last" / "model").model
    expected = {f"base_model.model.{name}": value for name, value in adapter_parameters(ours).items()}
    found = {name: value for name, value in theirs.named_parameters() if ".lora_" in name}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert_same_logits(ours, theirs, AutoProcessor.from_pretrained(run.model_path))


def assert_same_logits(ours, theirs, processor):
    """Of a question about a picture, put together by the checkpoint's own processor."""
    from PIL import Image

    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit?"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(images=[Image.new("RGB", (112, 112), (200, 30, 30))], text=[text], return_tensors="pt")
    with torch.no_grad():
        gap = (ours.eval()(**inputs).logits - theirs.eval()(**inputs).logits).abs().max()
    assert gap < 1e-5


def test_a_run_without_an_adapter_is_exported_as_it_is(straight, tmp_path):
    run = straight("bfloat16")
    export(run.run_dir, tmp_path / "a", checkpoint="01-grpo-000002")
    model = run.run_dir / "checkpoints" / "01-grpo-000002" / "model"
    assert {f.name: f.read_bytes() for f in (tmp_path / "a").iterdir()} == {
        f.name: f.read_bytes() for f in model.iterdir()
    }
    with pytest.raises(ConfigError, match="--adapter: .* was trained without model.lora"):
        export(run.run_dir, tmp_path / "b", adapter=True)


def test_what_cannot_be_exported_is_said(straight, tmp_path):
    run = straight("lora").run_dir
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already and not an empty folder"):
        export(run, tmp_path / "full")
    with pytest.raises(ConfigError, match=r"has no '00-x'; it has 01-grpo-000002, 01-grpo-000003"):
        export(run, tmp_path / "new", checkpoint="00-x")
    with pytest.raises(ConfigError, match="holds no run"):
        export(tmp_path, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
