"""Real parts in their smallest form: a random Qwen2.5-VL on disk, loaded as any checkpoint is."""

import numpy as np
import pytest
from hypothesis import settings

from mmrl.types import CoordinateFrame, Media

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A folder with a tiny Qwen2.5-VL checkpoint."""
    from mmrl.demo.zoom_digits import write_model

    path = tmp_path_factory.mktemp("checkpoint") / "model"
    write_model(path, seed=0)
    return path


@pytest.fixture(scope="session")
def checkpoint(model_dir):
    from mmrl.models.load import load_checkpoint

    return load_checkpoint(model_dir, family=None, dtype="float32", device="cpu")


@pytest.fixture
def picture():
    """picture(seed, width, height) is a random image, shown as it is."""

    def make(seed=0, width=56, height=56):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        frame = CoordinateFrame(original=(width, height), seen=(width, height))
        return Media(kind="image", key=f"picture-{seed}-{width}x{height}", data=pixels, frame=frame, original=pixels)

    return make
