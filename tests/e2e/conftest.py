from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _restore_torch_settings():
    """A run turns deterministic algorithms on for its process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """A folder in which the debug configuration's relative paths lead to files that are made once."""
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture
def load(workspace, monkeypatch):
    """load("key=value", ...) is configs/debug.yaml with changes, in the workspace."""
    from mmrl.config import load_config

    monkeypatch.chdir(workspace)
    return lambda *overrides: load_config(ROOT / "configs" / "debug.yaml", list(overrides))


@pytest.fixture
def demo_rows(load, workspace):
    """demo_rows("train") are the rows of a file of the debug configuration; its folder is demo_rows.folder."""
    import json

    from mmrl.resolve import build

    plugin = load().setup[0]
    build(plugin.use, plugin.fields).prepare(0)

    def read(name):
        return [json.loads(line) for line in (read.folder / f"{name}.jsonl").read_text().splitlines()]

    read.folder = workspace / "data" / "zoom_digits_debug"
    return read
