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
