"""Every modality, tool and rung, from rows and files to the report: demonstrations are played, the page shows them."""

import json
from pathlib import Path

import families
import numpy as np
import pytest
import soundfile
from PIL import Image

from mmrl.config import RunConfig
from mmrl.report.html import write_report
from mmrl.report.store import RunStore
from mmrl.scaling.ladders import SparseToDense
from mmrl.scaling.measure import ShownStrategies, measure_strategies
from mmrl.train.session import open_session
from mmrl.train.stages import demonstrate
from mmrl.types import Group

SMALL = {"min_pixels": 3136, "max_pixels": 3136}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Omni checkpoint, a picture, a clip and a sound."""
    from mmrl.demo.brief_digits import Clip, write_clip

    root = tmp_path_factory.mktemp("modalities")
    families.write("qwen2_5_omni", root / "model")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(root / "a.png")
    write_clip(root / "a.mp4", Clip(digit=0, digit_at=60, marked=(48, 96), seed=0), np.ones((12, 12), np.float32))
    soundfile.write(root / "a.wav", np.sin(np.arange(48000) / 10), 16000)
    return root


def call(name, **arguments):
    return {"role": "assistant", "content": "", "tool_calls": [{"name": name, "arguments": arguments}]}


ANSWER = {"role": "assistant", "content": "<answer>7</answer>"}
ROWS = {
    "image": {
        "messages": [{"role": "user", "content": "<image>Which?"}],
        "images": ["a.png"],
        "boxes": [[40, 40, 90, 90]],
        "demonstration": [
            call("image_zoom_in_tool", bbox_2d=[28, 28, 84, 84]),
            call("search_coordinate", coordinate=[112, 112]),
            ANSWER,
        ],
    },
    "video": {
        "messages": [{"role": "user", "content": "<video>Which?"}],
        "videos": [{"path": "a.mp4", "frames": 8}],
        "spans": [[60, 69]],
        "demonstration": [
            call("crop_video", start_time=48, end_time=96),
            call("select_frames", target_frames=[4]),
            ANSWER,
        ],
    },
    "audio": {
        "messages": [{"role": "user", "content": "<audio>Which?"}],
        "audios": ["a.wav"],
        "spans": [[1, 2]],
        "demonstration": [call("crop_audio", start_time=0.5, end_time=1.5), ANSWER],
    },
}


@pytest.fixture
def session(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name, row in ROWS.items():
        Path(f"{name}.jsonl").write_text(json.dumps({"id": name, "answer": "7", **row}) + "\n")
    config = RunConfig.model_validate(
        {
            "name": "modalities",
            "model": {"path": str(folder / "model"), "device": "cpu"},
            "data": {
                "image": {"use": "mmrl.processors.image:Image", **SMALL},
                "video": {"use": "mmrl.processors.video:Video", "frames": 8, "densest": 32, **SMALL},
            },
            "episode": {
                "tools": [
                    {"use": "mmrl.tools.zoom:Zoom", **SMALL},
                    {"use": "mmrl.tools.zoom_point:ZoomPoint", "half_side": 28, "side": 56},
                    {"use": "mmrl.tools.crop_video:CropVideo", "video": {"frames": 8, **SMALL}},
                    {"use": "mmrl.tools.select_frames:SelectFrames", "video": SMALL},
                    {"use": "mmrl.tools.crop_audio:CropAudio"},
                ],
                "max_turn_tokens": 200,
            },
            "rewards": [
                {"use": "mmrl.rewards.answer:Exact", "name": "accuracy"},
                {"use": "mmrl.rewards.temporal:SpanIoU", "source": "call", "which": "best", "name": "span"},
            ],
        }
    )
    return open_session(config)


def test_every_tool_and_modality_appears_in_the_report(session):
    store = RunStore(session.config.run_dir)
    store.clear()
    (store.path / "config.yaml").write_text("name: modalities\n")
    for name in ROWS:
        trajectory = demonstrate(session, session.prompt(session.dataset(f"{name}.jsonl"), 0))
        assert trajectory.answer == "7", trajectory.turns[-1]
        group = Group(sample=session.dataset(f"{name}.jsonl").load(0).sample, trajectories=(trajectory,))
        store.write_groups(name, [group], session.checkpoint.family.decode)
    store.close()
    page = write_report(store.path).read_text()
    for shown in (
        "crop of image 0",
        "around a point of image 0",
        "a.mp4",
        "video 0, 48 s to 96 s",
        "a.mp4 at 54.00 s",
        "a.wav",
        "audio 0, 0.5 s to 1.5 s",
    ):
        assert shown in page, shown
    assert page.count("<audio controls") == 2
    assert "data:image/" in page


def test_every_rung_appears_in_the_report(session):
    store = RunStore(session.config.run_dir)
    store.clear()
    (store.path / "config.yaml").write_text("name: modalities\n")
    from mmrl.report.progress import Progress

    with Progress() as progress:
        shown = ShownStrategies(progress, 1, keep=1)
        strategy = SparseToDense(start=8, densest=32, samples=2)
        found = measure_strategies(session, session.dataset("video.jsonl"), {"ladder": strategy}, shown, keep=1)
    shown.write(store, session.checkpoint.family.decode)
    store.close()
    page = write_report(store.path).read_text()
    rungs = round(found["ladder"]["rungs"])
    titles = [f"{frames} frames" for frames in (8, 16, 32)][:rungs]
    assert all(title in page for title in titles)


def test_a_span_that_was_asked_for_is_scored(session):
    """The crop of 48-96 s holds the gold span of 60-69 s: an overlap of 9 in 48 seconds."""
    import asyncio

    from mmrl.protocols import RewardContext
    from mmrl.scoring import score_group

    prompt = session.prompt(session.dataset("video.jsonl"), 0)
    group = Group(sample=prompt.sample, trajectories=(demonstrate(session, prompt),))
    (trajectory,) = asyncio.run(score_group(group, session.rewards, RewardContext(step=0))).trajectories
    assert trajectory.scores["span"].value == pytest.approx(9 / 48)
    assert trajectory.scores["accuracy"].value == 1
