"""The video and the audio demo from files to summary and report, with few rows and steps: nothing is learned."""

import json
from pathlib import Path

import pytest

from mmrl.config import load_config
from mmrl.report.html import write_report
from mmrl.train.run import train

ROOT = Path(__file__).parents[2]
FEW = (
    "setup.0.train=8",
    "setup.0.demonstrations=8",
    "setup.0.validation=4",
    "setup.0.test=4",
    "stages.0.steps=1",
    "stages.0.examples_per_step=4",
    "stages.1.steps=1",
    "stages.1.prompts_per_step=2",
    "stages.1.group_size=2",
    "stages.1.validation.every=1",
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run("demo_video") is the directory of a short run."""
    monkeypatch.chdir(tmp_path)
    return lambda name: train(load_config(ROOT / "configs" / f"{name}.yaml", list(FEW)))


def test_the_video_demo(run):
    run_dir = run("demo_video")
    summary = json.loads((run_dir / "summary.json").read_text())
    assert set(summary) == {"train_seconds", "rows", "before", "after", "test_time"}
    assert set(summary["before"]) == {"accuracy", "mean_iou", "format", "tool_calls"}
    densest, ladder = summary["test_time"]["densest"], summary["test_time"]["sparse_to_dense"]
    for result in (densest, ladder):
        assert 0 <= result["accuracy"] <= 1
    assert densest["frames"] >= 5 * 64  # five samples of the densest look, and what tools showed
    assert 5 * 8 <= ladder["frames"] <= 5 * (8 + 16 + 32 + 64 + 4 * 8)
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["decoders"]["video_backend"].split()[0] in ("pyav", "torchcodec", "decord")
    page = write_report(run_dir).read_text()
    assert "8 frames" in page
    assert "64 frames" in page


def test_the_audio_demo(run):
    run_dir = run("demo_audio")
    summary = json.loads((run_dir / "summary.json").read_text())
    assert set(summary["after"]) == {"accuracy", "format", "tool_calls"}
    assert "<audio controls" in write_report(run_dir).read_text()
