"""What the README shows works as it stands."""

import re
from pathlib import Path

import numpy as np
import yaml

from mmrl.train.play import rollout

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_reward_and_the_tool_of_the_readme_run(load, workspace):
    for code in blocks("python")[:2]:
        name = code.splitlines()[0].removeprefix("# ")
        (workspace / name).write_text(code)
    reward, tool = (yaml.safe_load(block) for block in blocks("yaml")[:2])
    config = load("name=readme", f"rewards.0={reward['rewards'][0]}", f"episode.tools={tool['episode']['tools']}")
    run_dir = rollout(config, checkpoint=None, rows=None, limit=2, group_size=2, temperature=1.0)
    lines = (run_dir / "rollouts" / "stream.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert all('"brief": {"kind": "value"' in line for line in lines)
    assert all("count_images" in line for line in lines)  # the prompt lists the tool


def test_the_rollout_sections_of_the_readme_are_accepted():
    from mmrl.config import RolloutSection

    sections = [RolloutSection(**yaml.safe_load(block)["rollout"]) for block in blocks("yaml")[2:]]
    assert [section.engine for section in sections] == ["vllm", "vllm"]


def test_the_question_of_the_readme_is_answered(workspace, model_dir, capsys):
    from mmrl.demo.brief_digits import Clip, write_clip

    clip = workspace / "clip.mp4"
    write_clip(clip, Clip(digit=0, digit_at=60, marked=(48, 96), seed=0), np.ones((12, 12), np.float32))
    code = blocks("python")[2]
    assert "runs/demo_video/checkpoints/last/model" in code
    code = code.replace("runs/demo_video/checkpoints/last/model", str(model_dir)).replace('"clip.mp4"', repr(str(clip)))
    exec(code.replace("densest=64", "densest=16"), {})
    printed = capsys.readouterr().out
    assert "{" in printed  # the votes


def test_the_row_of_the_readme_is_read(tmp_path):
    import json

    from mmrl.data.rows import read_rows

    (block,) = blocks("json")
    (tmp_path / "rows.jsonl").write_text(json.dumps(json.loads(block)))
    samples, errors = read_rows(tmp_path / "rows.jsonl")
    assert errors == []
    assert samples[0].gold.answer == "7"
