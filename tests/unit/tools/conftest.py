"""Media as an episode holds them."""

import numpy as np
import pytest
import soundfile

from mmrl.processors.audio import Audio
from mmrl.processors.video import Video
from mmrl.types import MediaRef


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A clip of 192 s, a frame every 3 s, that shows a white digit for 9 s from 60 s on; loaded at 8 small frames."""
    from mmrl.demo.brief_digits import Clip, write_clip

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, Clip(digit=0, digit_at=60, marked=(48, 96), seed=0), np.ones((12, 12), np.float32))
    ref = MediaRef(kind="video", path=path.name, root=str(path.parent))
    return Video(frames=8, min_pixels=784, max_pixels=784).load(ref)


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """Three seconds at 16 kHz: second n is a constant of 0.2 * (n + 1)."""
    path = tmp_path_factory.mktemp("sound") / "sound.wav"
    soundfile.write(path, np.repeat([0.2, 0.4, 0.6], 16000), 16000, subtype="FLOAT")
    return Audio().load(MediaRef(kind="audio", path=path.name, root=str(path.parent)))
