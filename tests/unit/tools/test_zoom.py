"""Zoom shows the original's own pixels, and refuses in words that a model can act on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.models.space import SeenPixels
from mmrl.processors.image import view
from mmrl.protocols import ToolError, ToolState
from mmrl.rollout.toolbox import Toolbox
from mmrl.tools.zoom import Zoom
from mmrl.types import ToolCall

ORIGINAL = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
SPACE = "absolute pixels of the image as shown"


def image(width=224, height=224):
    """The original, shown at width x height."""
    return view(ORIGINAL, None, (width, height), label="a.png")


async def zoom(box, *media, tool=None, error_chars=200, **more):
    toolbox = Toolbox([tool or Zoom()], error_chars=error_chars)
    call = ToolCall(name="image_zoom_in_tool", arguments={"bbox_2d": box, **more})
    return await toolbox.run(call, ToolState(media=media or (image(),), space=SeenPixels()))


async def refusal(box, *media, **more):
    with pytest.raises(ToolError) as caught:
        await zoom(box, *media, **more)
    return str(caught.value)


async def test_a_crop_holds_the_pixels_of_its_region():
    root = image()
    observation = await zoom([14, 28, 70, 84], root)
    (crop,) = observation.media
    assert (crop.data == ORIGINAL[28:84, 14:70]).all()
    assert observation.region.box == (14.0, 28.0, 70.0, 84.0)
    assert observation.region.on == crop.parent == root.key
    assert crop.label == "crop of image 0"
    assert crop.original is root.original
    assert crop.frame.offset == (14.0, 28.0)


async def test_a_crop_of_a_shrunk_image_is_cut_from_the_original():
    observation = await zoom([28, 28, 84, 84], image(112, 112))
    assert observation.region.box == (56.0, 56.0, 168.0, 168.0)
    assert (observation.media[0].data == ORIGINAL[56:168, 56:168]).all()


async def test_a_crop_of_a_crop_is_cut_from_the_original():
    tool = Zoom(min_pixels=56 * 56, max_pixels=56 * 56)
    root = image(112, 112)
    (crop,) = (await zoom([56, 0, 112, 56], root, tool=tool)).media
    assert crop.frame.scale == (2.0, 2.0)  # 112 original pixels shown at 56: detail is lost in it ...
    observation = await zoom([14, 14, 42, 42], root, crop, tool=tool, image=1)
    (nested,) = observation.media
    assert (nested.data == ORIGINAL[28:84, 140:196]).all()  # ... and is there again in its crop
    assert observation.region.box == (140.0, 28.0, 196.0, 84.0)
    assert observation.region.on == nested.parent == crop.key
    assert nested.label == "crop of image 1"


async def test_a_small_region_is_shown_enlarged():
    (crop,) = (await zoom([0, 0, 28, 14])).media
    assert crop.frame.seen == (84, 56)
    assert crop.frame.to_original((0.0, 0.0, 84.0, 56.0)) == pytest.approx((0, 0, 28, 14))


async def test_a_region_grows_outward_to_whole_pixels():
    assert (await zoom([10.2, 20.7, 30.1, 40.0])).region.box == (10.0, 20.0, 31.0, 40.0)


async def test_rounding_error_does_not_add_a_pixel():
    assert (await zoom([10 - 1e-9, 20.0, 30 + 1e-9, 40.0])).region.box == (10.0, 20.0, 30.0, 40.0)


@pytest.mark.parametrize(
    ("asked", "given_"),
    [
        ([-50, -50, 40, 60], (0.0, 0.0, 40.0, 60.0)),
        ([200, 180, 999, 999], (200.0, 180.0, 224.0, 224.0)),
        ([-5, -5, 999, 999], (0.0, 0.0, 224.0, 224.0)),
    ],
)
async def test_what_lies_outside_the_image_is_clipped(asked, given_):
    assert (await zoom(asked)).region.box == given_


async def test_a_crop_is_clipped_to_what_the_crop_shows_not_to_the_original():
    root = image()
    (crop,) = (await zoom([56, 56, 112, 112], root)).media
    assert (await zoom([-50, -50, 28, 28], root, crop, image=1)).region.box == (56.0, 56.0, 84.0, 84.0)


@pytest.mark.parametrize("box", [[300, 300, 400, 400], [-20, 0, 0, 50], [0, 224, 50, 300]])
async def test_a_box_wholly_outside_is_refused_with_the_space_and_its_extent(box):
    expected = f"Error: bbox_2d lies outside the image; it is in {SPACE}, from (0, 0) to (224, 224)"
    assert await refusal(box) == expected


async def test_the_extent_is_that_of_the_image_asked_about():
    root = image()
    (crop,) = (await zoom([0, 0, 56, 112], root)).media
    assert (await refusal([100, 0, 150, 50], root, crop, image=1)).endswith(f"{SPACE}, from (0, 0) to (56, 112)")


async def test_a_box_too_small_to_show_anything_is_refused_with_the_space():
    expected = f"Error: bbox_2d is too small to show anything; it is in {SPACE}, from (0, 0) to (224, 224)"
    assert await refusal([10, 10, 13, 100]) == expected


async def test_a_region_too_narrow_to_show_is_refused():
    text = await refusal([0, 10, 224, 11], tool=Zoom(min_side=1))
    assert text == "Error: bbox_2d is too narrow: one side is over 200 times the other"


NUMBERS = "Error: bbox_2d: Value error, must be a list of four numbers [x1, y1, x2, y2]"


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ([30, 0, 10, 20], "Error: bbox_2d: Value error, must have x1 < x2 and y1 < y2"),
        ([0, 20, 10, 20], "Error: bbox_2d: Value error, must have x1 < x2 and y1 < y2"),
        ([float("nan"), 0, 10, 10], "Error: bbox_2d.0: Input should be a finite number"),
        ([0, 0, float("inf"), 10], "Error: bbox_2d.2: Input should be a finite number"),
        ([0, 0, 10**400, 10], "Error: bbox_2d.2: Input should be a valid number"),
        ([0, 0, 10, 1e7], "Error: bbox_2d.3: Input should be less than or equal to 1000000"),
        (["0", 0, 10, 10], NUMBERS),
        ([False, 0, 10, True], NUMBERS),
        ([0, 0, None, 10], NUMBERS),
        ("0,0,10,10", NUMBERS),
        ({"x1": 0}, NUMBERS),
        (None, NUMBERS),
        ([1, 2, 3, 4, 5], "Error: bbox_2d: Tuple should have at most 4 items after validation, not 5"),
        ([1, 2, 3], "Error: bbox_2d.3: Field required"),
    ],
)
async def test_a_box_that_is_no_box_is_refused_by_name(box, text):
    assert await refusal(box) == text


async def test_an_extra_argument_is_refused_by_name():
    assert await refusal([0, 0, 10, 10], zoom=2) == "Error: zoom: Extra inputs are not permitted"


@pytest.mark.parametrize("number", [-1, 2, 10**30])
async def test_an_image_that_was_not_shown_is_refused_with_the_range(number):
    assert await refusal([0, 0, 10, 10], image(), image(), image=number) == "Error: image must be between 0 and 1"


@pytest.mark.parametrize("number", [True, "0", 0.5, None])
async def test_an_image_number_that_is_no_whole_number_is_refused(number):
    assert await refusal([0, 0, 10, 10], image=number) == "Error: image: Input should be a valid integer"


async def test_without_any_image_the_refusal_says_so():
    call = ToolCall(name="image_zoom_in_tool", arguments={"bbox_2d": [0, 0, 10, 10]})
    with pytest.raises(ToolError, match="no image"):
        await Toolbox([Zoom()], error_chars=200).run(call, ToolState(media=(), space=SeenPixels()))


async def test_an_unknown_tool_is_refused_with_the_tools_there_are():
    call = ToolCall(name="rotate", arguments={})
    with pytest.raises(ToolError) as caught:
        await Toolbox([Zoom()], error_chars=200).run(call, ToolState(media=(image(),), space=SeenPixels()))
    assert str(caught.value) == "Error: there is no tool of that name; the tools are: image_zoom_in_tool"
    with pytest.raises(ToolError, match="the tools are: none"):
        await Toolbox([], error_chars=200).run(call, ToolState(media=(), space=SeenPixels()))


@pytest.mark.parametrize("length", [16, 40, 80])
async def test_a_refusal_is_bounded_in_length_whatever_was_written(length):
    text = await refusal([0, 0, 10, 10], error_chars=length, **{"x" * 10_000: 1})
    assert len(text) <= length
    assert text.startswith("Error: xxx")
    assert len(await refusal(["x" * 10_000], error_chars=length)) <= length


async def test_a_text_of_just_the_allowed_length_is_not_cut():
    toolbox = Toolbox([], error_chars=16)
    assert toolbox.bounded("123456789") == "Error: 123456789"
    assert toolbox.bounded("1234567890") == "Error: 123456..."


async def test_a_refusal_does_not_repeat_what_was_written_in_the_box():
    assert "secret" not in await refusal(["secret", 0, 0, 0])


async def test_a_crop_is_never_its_own_parent():
    # Following parents to the root, as the report does, would not end.
    root = image()
    (crop,) = (await zoom([0, 0, 224, 224], root)).media
    assert crop.parent == root.key
    assert crop.key != root.key


NUMBER = st.one_of(st.integers(-300, 300), st.floats(), st.floats(-300, 300), st.booleans(), st.text(max_size=3))


SHOWN = (image(112, 112), image(56, 112))


@settings(max_examples=150, deadline=None)
@given(box=st.lists(NUMBER, min_size=3, max_size=5), number=st.integers(-1, 2))
async def test_any_call_gives_a_region_inside_the_image_or_a_bounded_refusal(box, number):
    refused, region = "", None
    try:
        region = (await zoom(box, *SHOWN, image=number)).region.box
    except ToolError as error:
        refused = str(error)
    if region is None:
        assert refused.startswith("Error: ")
        assert len(refused) <= 200
    else:
        x1, y1, x2, y2 = region
        assert 0 <= x1 <= x2 - 4 <= 220
        assert 0 <= y1 <= y2 - 4 <= 220
        assert region == tuple(round(v) for v in region)
