"""Zoom tools as published systems define them: names, coordinate spaces, index bases, which image, whose pixels."""

import numpy as np
import pytest
from PIL import Image as Pillow

from mmrl.models.space import Relative, SeenPixels
from mmrl.processors.image import view
from mmrl.protocols import ToolError, ToolState
from mmrl.rollout.toolbox import Toolbox
from mmrl.tools.zoom import Zoom
from mmrl.tools.zoom_point import ZoomPoint
from mmrl.types import ToolCall

PIXELS = np.random.default_rng(0).integers(0, 256, (448, 448, 3), dtype=np.uint8)
OTHER = PIXELS[::-1].copy()


def media(side=224):
    """Two images of 448 x 448, shown at `side`."""
    return [view(pixels, None, (side, side), label="") for pixels in (PIXELS, OTHER)]


async def call(tool, shown, space=SeenPixels(), **arguments):  # noqa: B008 (frozen)
    state = ToolState(media=tuple(shown), space=space)
    return await Toolbox([tool], error_chars=300).run(ToolCall(name=tool.name, arguments=arguments), state)


QWEN3 = Zoom(space="relative_1000", index_key="img_idx", label_key="label")
DEEPEYES = Zoom(space="seen", index_key=None, label_key="label")
PIXEL_REASONER = Zoom(name="zoom_in", space="relative_1", index_key="target_image", index_base=1)
VRAG = Zoom(name="bbox", index_key=None, which="last")


@pytest.mark.parametrize(
    ("tool", "arguments", "image"),
    [
        (QWEN3, {"bbox_2d": [250, 250, 500, 750], "label": "a dog", "img_idx": 0}, 0),
        (DEEPEYES, {"bbox_2d": [56, 56, 112, 168], "label": "a dog"}, 0),
        (PIXEL_REASONER, {"bbox_2d": [0.25, 0.25, 0.5, 0.75], "target_image": 2}, 1),
        (VRAG, {"bbox_2d": [56, 56, 112, 168]}, 1),
        (Zoom(space="original"), {"bbox_2d": [112, 112, 224, 336], "image": 1}, 1),
    ],
)
async def test_each_convention_names_the_same_original_pixels(tool, arguments, image):
    shown = media()
    observation = await call(tool, shown, **arguments)
    assert observation.region.box == (112.0, 112.0, 224.0, 336.0)
    assert observation.region.on == shown[image].key


async def test_a_model_speaks_its_own_space_where_none_is_configured():
    observation = await call(Zoom(), media(), space=Relative(), bbox_2d=[250, 250, 500, 750])
    assert observation.region.box == (112.0, 112.0, 224.0, 336.0)


async def test_a_box_may_grow_about_its_centre():
    observation = await call(Zoom(enlarge=1.5), media(448), bbox_2d=[100, 100, 200, 140])
    assert observation.region.box == (75.0, 90.0, 225.0, 150.0)


async def test_pixels_may_be_those_that_the_model_saw():
    shown = media(112)
    tool = Zoom(source="seen", min_pixels=3136, max_pixels=3136)
    observation = await call(tool, shown, bbox_2d=[28, 28, 84, 84])
    (crop,) = observation.media
    assert (crop.data == shown[0].data[28:84, 28:84]).all()
    assert crop.frame.to_original((0.0, 0.0, 56.0, 56.0)) == (112.0, 112.0, 336.0, 336.0)
    (nested,) = (await call(tool, [*shown, crop], bbox_2d=[0, 0, 28, 28], image=2)).media
    enlarged = Pillow.fromarray(crop.data[:28, :28]).resize((56, 56), Pillow.Resampling.BICUBIC)
    assert (nested.data == np.asarray(enlarged)).all()
    assert nested.frame.to_original((0.0, 0.0, 56.0, 56.0)) == (112.0, 112.0, 224.0, 224.0)


@pytest.mark.parametrize(
    ("tool", "space", "spoken"),
    [
        (Zoom(), SeenPixels(), [56, 56, 112, 168]),
        (Zoom(), Relative(), [250, 250, 500, 750]),
        (PIXEL_REASONER, Relative(), [0.25, 0.25, 0.5, 0.75]),
        (Zoom(space="original"), SeenPixels(), [112, 112, 224, 336]),
    ],
)
def test_a_demonstrated_box_is_spoken_in_the_tools_space(tool, space, spoken):
    state = ToolState(media=tuple(media()), space=space)
    assert tool.spoken({"bbox_2d": [112, 112, 224, 336]}, state)["bbox_2d"] == spoken


async def test_a_point_shows_its_surroundings_in_original_pixels():
    tool = ZoomPoint(half_side=56, side=112)
    observation = await call(tool, media(), coordinate=[112, 112])
    assert observation.region.box == (168.0, 168.0, 280.0, 280.0)
    (crop,) = observation.media
    assert (crop.data == PIXELS[168:280, 168:280]).all()


async def test_the_surroundings_of_a_point_end_at_the_images_edge():
    observation = await call(ZoomPoint(half_side=56, side=112), media(), coordinate=[0, 223])
    assert observation.region.box == (0.0, 390.0, 56.0, 448.0)


async def test_a_dot_marks_the_point_on_a_copy():
    shown = media()
    (crop,) = (await call(ZoomPoint(half_side=56, side=112, dot=7), shown, coordinate=[112, 112])).media
    assert crop.data[56, 56].tolist() == [255, 0, 0]
    assert (shown[0].original == PIXELS).all()


@pytest.mark.parametrize("point", [[224, 0], [-1, 5], [float("nan"), 1], [1], [1, 2, 3], "1,2", [True, 1], [1e400, 0]])
async def test_points_outside_or_malformed_are_refused(point):
    with pytest.raises(ToolError, match="^Error: coordinate"):
        await call(ZoomPoint(), media(), coordinate=point)


def test_a_demonstrated_point_is_spoken_in_the_models_space():
    state = ToolState(media=tuple(media()), space=Relative())
    assert ZoomPoint().spoken({"coordinate": [112, 224]}, state)["coordinate"] == [250, 500]


async def test_seen_pixels_of_a_crop_with_a_fractional_offset_are_not_empty():
    shown = view(np.full((150, 200, 3), 200, dtype=np.uint8), None, (112, 84), label="")
    tool = Zoom(source="seen", min_pixels=3136, max_pixels=3136)
    (crop,) = (await call(tool, [shown], bbox_2d=[23.4, 31.4, 80, 70])).media
    for box in ([0, 0, 20, 20], [0, 0, *crop.frame.seen], [1, 1, 30, 28]):
        (nested,) = (await call(tool, [shown, crop], bbox_2d=box, image=1)).media
        assert (nested.data == 200).all()


def test_a_demonstrated_box_is_rounded_once_in_its_own_space():
    image = view(np.zeros((3000, 4000, 3), np.uint8), None, (112, 84), label="")
    box = {"bbox_2d": [100, 100, 130, 130]}
    state = ToolState(media=(image,), space=SeenPixels())
    assert Zoom(space="original").spoken(box, state)["bbox_2d"] == [100, 100, 130, 130]
    assert Zoom(space="relative_1000").spoken(box, state)["bbox_2d"] == [25, 33, 32, 43]
    assert Zoom().spoken(box, state)["bbox_2d"] == [3, 3, 4, 4]  # never empty
