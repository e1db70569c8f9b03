"""`mmrl answer`, as a user types it."""

import numpy as np
import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

from mmrl.cli import app
from mmrl.errors import MmrlError

CONFIG = """
name: ask
deterministic: false
model: {{path: {model}}}
data:
  image: {{use: mmrl.processors.image:Image, max_pixels: 12544}}
episode:
  system: Look closer.
  max_turn_tokens: 4
  tools: [{{use: "mmrl.tools.zoom:Zoom"}}]
"""


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


@pytest.fixture
def config(tmp_path, model_dir):
    (tmp_path / "config.yaml").write_text(CONFIG.format(model=model_dir))
    return tmp_path / "config.yaml"


def answer(*arguments):
    return CliRunner().invoke(app, ["answer", *map(str, arguments)])


def test_the_answer_the_rungs_and_what_they_cost(config, picture):
    ladder = ("--strategy", "resolution-ladder", "--set", "start_pixels=3136", "--set", "max_pixels=12544")
    result = answer("Which digit?", "--config", config, "--image", picture, *ladder, "--set", "samples=3")
    assert result.exit_code == 0, result.output
    first, ended, rung, spent = result.output.splitlines()
    assert first == "Answer: none"
    assert ended.startswith("It ended with max_tokens: ")
    assert rung.startswith("rung 1 (3136 pixels)  votes no answer: 3  frames 3  tokens ")
    assert spent.startswith("Spent: rungs 1, frames 3, tokens ")


def test_several_media_and_another_model(config, picture, model_dir):
    result = answer("Same?", "--config", config, "--model", model_dir, "--image", picture, "--image", picture)
    assert result.exit_code == 0, result.output
    assert "Spent: rungs 1, frames 2, " in result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("Which?",), "name a model: --model FOLDER, or --config CONFIG"),
        (("Which?", "--model", "{model}", "--image", "gone.png"), "gone.png: no such file"),
        (("Which?", "--model", "{model}", "--strategy", "spare-to-dense"), "did you mean 'sparse-to-dense'"),
        (("Which?", "--model", "{model}", "--set", "samples"), "--set 'samples': write name=value"),
        (("Which?", "--model", "{model}", "--strategy", "vote", "--set", "samples=many"), "--strategy.samples: "),
        (("Which?", "--model", "nowhere/at/all"), "no folder nowhere/at/all"),
    ],
)
def test_what_a_user_can_mend_is_one_line(model_dir, arguments, told):
    result = answer(*(argument.format(model=model_dir) for argument in arguments))
    assert isinstance(result.exception, MmrlError)
    assert told in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.filterwarnings("ignore")  # vLLM's own
def test_the_engine_is_closed_behind_the_answer(config, picture):
    """A process holds one vLLM at a time."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    engine = "rollout: {engine: vllm, vllm: {kv_cache_memory_bytes: 268435456}}\n"
    config.write_text(config.read_text().replace("episode:", engine + "episode:\n  max_context: 1024"))
    for question in ("Which digit?", "Which one?"):
        result = answer(question, "--config", config, "--image", picture)
        assert result.exit_code == 0, result.output
        assert "Answer: none\nIt ended with max_tokens: " in result.output
