"""A row file of every foreign format passes the check and trains a step, unchanged."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from mmrl.cli import app
from mmrl.train.run import train

NUM_ROWS = 8


def easyr1(number, image):
    return {"problem": "<image>Which digit is in the red frame?", "answer": str(number), "images": [image]}


def verl(number, image):
    return {
        "data_source": "digits",
        "prompt": [{"role": "user", "content": "<image>Which digit is in the red frame?"}],
        "images": [{"bytes": image.read_bytes(), "path": image.name}],
        "ability": "vision",
        "reward_model": {"style": "rule", "ground_truth": str(number)},
        "extra_info": {"split": "train", "index": number},
    }


def ms_swift(number, image):
    return {
        "messages": [{"role": "user", "content": "<image>Which digit is in the red frame?"}],
        "images": [image.name],
        "solution": str(number),
    }


def llava(number, image):
    return {
        "id": f"row-{number}",
        "image": image.name,
        "conversations": [
            {"from": "human", "value": "<image>\nWhich digit is in the red frame?"},
            {"from": "gpt", "value": str(number)},
        ],
    }


def video_r1(number, image):
    return {
        "problem_id": number,
        "problem": "Which digit is in the red frame?",
        "data_type": "image",
        "problem_type": "numerical",
        "options": [],
        "solution": f"<answer>{number}</answer>",
        "path": f"./{image.name}",
        "data_source": "digits",
    }


def trl(number, image):
    return {
        "prompt": [{"role": "user", "content": "Which digit is in the red frame?"}],
        "image": image.name,
        "solution": str(number),
    }


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_list(path, rows):
    path.write_text(json.dumps(rows))


FORMATS = [
    (lambda n, image: easyr1(n, image.name), "jsonl", write_lines),
    (verl, "parquet", write_parquet),
    (ms_swift, "jsonl", write_lines),
    (llava, "json", write_list),
    (video_r1, "json", write_list),
    (trl, "parquet", write_parquet),
]
NAMES = ["easyr1", "verl", "ms_swift", "llava", "video_r1", "trl"]


@pytest.fixture
def foreign(workspace):
    """foreign(name) is the path of a file of rows in that format, its pictures beside it."""

    def make(name):
        row, suffix, write = FORMATS[NAMES.index(name)]
        folder = workspace / f"foreign_{name}"
        folder.mkdir(exist_ok=True)
        rows = []
        for number in range(NUM_ROWS):
            image = folder / f"{number}.png"
            noise = np.random.default_rng(number).integers(0, 256, (112, 112, 3), dtype=np.uint8)
            Image.fromarray(noise).save(image)
            rows.append(row(number, image))
        path = folder / f"rows.{suffix}"
        write(path, rows)
        return path

    return make


@pytest.mark.parametrize("name", NAMES)
def test_a_foreign_file_passes_the_check_and_trains_a_step(load, foreign, name):
    path = foreign(name)
    result = CliRunner().invoke(app, ["data", "check", str(path)])
    assert result.exit_code == 0, result.output
    assert f"read as {name}" in result.output
    config = load(
        f"name=foreign_{name}",
        "stages.0.steps=0",
        f"stages.1.rows={path}",
        "stages.1.steps=1",
        "stages.1.validation=null",
        "evaluate=null",
    )
    run_dir = train(config, overwrite=True)
    (line,) = [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert line["stage"] == "grpo"
    assert np.isfinite(line["loss"])
    assert not (run_dir / "data_errors.jsonl").exists()
    (first, *_) = [json.loads(text) for text in (run_dir / "rollouts" / "stream.jsonl").read_text().splitlines()]
    assert first["gold"]["answer"] in [str(number) for number in range(NUM_ROWS)]
    assert len(first["media"]) == 1
