"""What the README shows works as it stands."""

import re
from pathlib import Path

import yaml

from mmrl.train.play import rollout

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_reward_and_the_tool_of_the_readme_run(load, workspace):
    for code in blocks("python"):
        name = code.splitlines()[0].removeprefix("# ")
        (workspace / name).write_text(code)
    reward, tool = (yaml.safe_load(block) for block in blocks("yaml"))
    config = load("name=readme", f"rewards.0={reward['rewards'][0]}", f"episode.tools={tool['episode']['tools']}")
    run_dir = rollout(config, checkpoint=None, rows=None, limit=2, group_size=2, temperature=1.0)
    lines = (run_dir / "rollouts" / "stream.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert all('"brief": {"kind": "value"' in line for line in lines)
    assert all("count_images" in line for line in lines)  # the prompt lists the tool


def test_the_row_of_the_readme_is_read(tmp_path):
    import json

    from mmrl.data.rows import read_rows

    (block,) = blocks("json")
    (tmp_path / "rows.jsonl").write_text(json.dumps(json.loads(block)))
    samples, errors = read_rows(tmp_path / "rows.jsonl")
    assert errors == []
    assert samples[0].gold.answer == "7"
