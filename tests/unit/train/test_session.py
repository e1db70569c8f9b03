"""What is refused before an engine starts, and what an engine that runs is not asked."""

import json
from dataclasses import replace

import families
import pytest
import torch
from media_files import write_video

from mmrl.cache.shared import SharedFeatures
from mmrl.config import RunConfig
from mmrl.errors import ConfigError
from mmrl.rollout.engine_vllm import VllmEngine
from mmrl.train.engine import TorchEngine
from mmrl.train.optim import build_optimizer, select_parameters
from mmrl.train.session import open_session
from mmrl.train.stages import Sft


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"rewards": [{"use": "mmrl.rewards.answer:Exatc"}]}, "did you mean 'Exact'"),
        ({"episode": {"tools": [{"use": "mmrl.tools.zoom:Zoom", "sides": 3}]}}, "sides"),
        ({"cache": {"folder": "rows.jsonl/cache"}}, "cache.folder: "),
    ],
)
def test_what_is_misspelt_costs_no_start_of_servers(model_dir, tmp_path, write_rows, section, told):
    """An engine that is opened makes its servers' folder first."""
    write_rows()
    rollout = {"engine": "vllm", "servers": {"urls": ["http://127.0.0.1:9"]}, "folder": str(tmp_path / "shared")}
    plain = {"name": "x", "model": {"path": str(model_dir)}, "rollout": rollout}
    with pytest.raises(ConfigError, match=told):
        open_session(RunConfig.model_validate(plain | section))
    assert not (tmp_path / "shared").exists()


class Idle:
    """A backend that is not asked for anything."""

    def sleep(self): ...

    def close(self): ...


@pytest.fixture
def heard(tmp_path, write_rows):
    """A session of a model that hears, and an SFT stage; row 0 is a video with its sound, row 1 the same without."""
    path = families.write("qwen2_5_omni", tmp_path / "model")
    write_video(tmp_path / "v.mp4", numbers=range(20), audio=True)
    asked, said = {"role": "user", "content": "<video>Which?"}, {"role": "assistant", "content": "<answer>7</answer>"}
    row = {"messages": [asked], "demonstration": [said], "videos": ["v.mp4"], "answer": "7"}
    write_rows(row | {"use_audio_in_video": True}, row)
    video = {"use": "mmrl.processors.video:Video", "frames": 4, "min_pixels": 3136, "max_pixels": 3136}
    stage = {"type": "sft", "rows": "rows.jsonl", "steps": 1, "examples_per_step": 2, "optimizer": {"lr": 1e-3}}
    config = RunConfig.model_validate(
        {
            "name": "x",
            "model": {"path": str(path), "device": "cpu"},
            "data": {"video": video, "max_bad_fraction": 0.5},
            "stages": [stage],
        }
    )
    return open_session(config, tell=lambda line: None)


@pytest.fixture
def beside_vllm(heard, tmp_path):
    """The same session, whose rollouts vLLM writes."""
    family, features = heard.checkpoint.family, heard.runner.engine.features
    engine = VllmEngine(Idle(), family, features, SharedFeatures(tmp_path / "shared"), lambda: iter(()))
    heard.runner = replace(heard.runner, engine=engine)
    yield heard
    engine.close()


def test_a_row_that_the_engine_does_not_take_is_counted_and_the_others_are_played(beside_vllm, tmp_path):
    session, rows = beside_vllm, beside_vllm.dataset("rows.jsonl")
    assert session.prompt(rows, 0) is None
    assert session.prompt(rows, 1).tokens.spans
    (line,) = (tmp_path / "runs" / "x" / "data_errors.jsonl").read_text().splitlines()
    assert "rows.jsonl row 0 " in json.loads(line)["error"]
    assert "vllm takes no video together with its sound" in json.loads(line)["error"]


def test_another_engine_takes_it(heard):
    assert any(span.joined for span in heard.prompt(heard.dataset("rows.jsonl"), 0).tokens.spans)


def test_demonstrations_are_not_given_to_the_engine_and_all_are_trained_on(beside_vllm):
    session, section = beside_vllm, beside_vllm.config.stages[0]
    model, family = session.checkpoint.model, session.checkpoint.family
    optimizer = build_optimizer(select_parameters(model, section.train, section.freeze), section.optimizer)
    features = session.runner.engine.features
    trainer = TorchEngine(model, family, optimizer, micro_batch_tokens=10**4, max_grad_norm=1.0, features=features)
    metrics = Sft(session, section, trainer).step(0, print)
    prompts = [session.prompt(session.dataset("rows.jsonl"), index, sampled=False) for index in (0, 1)]
    assert metrics["tokens"] > sum(len(prompt.tokens.ids) for prompt in prompts)
    assert session.bad.count == 0
