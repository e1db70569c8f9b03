"""Sizes follow the tower, unless a configuration says otherwise."""

from dataclasses import dataclass
from types import SimpleNamespace

from mmrl.models.fitting import fitted
from mmrl.models.vision import Patching
from mmrl.processors.image import Image
from mmrl.processors.video import Video
from mmrl.tools.crop_video import CropVideo
from mmrl.tools.zoom import Zoom

QWEN3 = SimpleNamespace(patching=Patching(patch=16, merge=2, temporal=2))
DEAF = SimpleNamespace()


def test_processors_and_tools_take_the_towers_sides():
    assert fitted(Image(), {}, QWEN3).factor == 32
    assert fitted(Video(frames=8), {"frames": 8}, QWEN3) == Video(frames=8, factor=32)
    assert fitted(Zoom(), {}, QWEN3).factor == 32
    assert fitted(CropVideo(), {}, QWEN3).video.factor == 32


def test_what_a_configuration_says_is_kept():
    assert fitted(Image(factor=64), {"factor": 64}, QWEN3).factor == 64
    tool = fitted(CropVideo(video=Video(factor=64)), {"video": {"factor": 64}}, QWEN3)
    assert tool.video.factor == 64


def test_what_has_no_sides_stays_as_it_is():
    @dataclass(frozen=True)
    class Plain:
        name: str = "a"

    assert fitted(Plain(), {}, QWEN3) == Plain()
    assert fitted(Image(), {}, DEAF) == Image()
    assert fitted(len, {}, QWEN3) is len
