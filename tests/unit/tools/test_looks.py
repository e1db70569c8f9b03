"""Tools that look at videos and audios again: the right moments, the resolution asked for, refusals in clear words."""

from dataclasses import replace

import numpy as np
import pytest

from mmrl.models.space import SeenPixels
from mmrl.processors.image import view
from mmrl.processors.video import Video
from mmrl.protocols import ToolError, ToolState
from mmrl.rollout.toolbox import Toolbox
from mmrl.tools.crop_audio import CropAudio
from mmrl.tools.crop_video import CropVideo
from mmrl.tools.select_frames import SelectFrames
from mmrl.types import ToolCall

SMALL = Video(frames=4, min_pixels=3136, max_pixels=3136)


async def call(tool, media, **arguments):
    state = ToolState(media=tuple(media), space=SeenPixels())
    return await Toolbox([tool], error_chars=300).run(ToolCall(name=tool.name, arguments=arguments), state)


async def refusal(tool, media, **arguments):
    with pytest.raises(ToolError) as caught:
        await call(tool, media, **arguments)
    return str(caught.value)


def is_white(frame):
    """Whether the digit, a white square, is shown."""
    height, width = frame.shape[:2]
    return frame[height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2].mean() > 200


async def test_a_span_is_sampled_anew_from_the_file(clip):
    observation = await call(CropVideo(video=SMALL), [clip], start_time=60, end_time=72)
    (crop,) = observation.media
    assert crop.times == (60.0, 63.0, 66.0, 69.0)
    assert crop.data.shape == (4, 56, 56, 3)
    assert [is_white(frame) for frame in crop.data] == [True, True, True, False]
    assert (crop.parent, crop.span) == (clip.key, (60.0, 72.0))
    assert crop.label == "video 0, 60 s to 72 s"
    assert observation.region.on == clip.key
    assert observation.region.span == (60.0, 72.0)


async def test_a_span_of_a_span_counts_in_seconds_of_the_file(clip):
    tool = CropVideo(video=SMALL, which="last")
    (crop,) = (await call(tool, [clip], start_time=48, end_time=96)).media
    (nested,) = (await call(tool, [clip, crop], start_time=60, end_time=72)).media
    assert nested.times == (60.0, 63.0, 66.0, 69.0)
    assert nested.parent == crop.key
    assert "within 48 and 96 seconds" in await refusal(tool, [clip, crop], start_time=100, end_time=120)


async def test_a_span_is_clipped_to_the_video(clip):
    observation = await call(CropVideo(video=SMALL), [clip], start_time=180, end_time=500)
    assert observation.region.span == (180.0, 192.0)


@pytest.mark.parametrize(
    ("start", "end"), [(20, 10), (10, 10), (500, 600), (float("nan"), 10), (-5, 10), ("10", []), (None, 3), (1e300, 2)]
)
async def test_spans_that_show_nothing_are_refused(clip, start, end):
    text = await refusal(CropVideo(video=SMALL), [clip], start_time=start, end_time=end)
    assert text.startswith("Error: ")
    assert len(text) <= 300


async def test_the_names_of_arguments_and_numbers_are_a_matter_of_configuration(clip):
    tool = CropVideo(name="look", start_key="from", end_key="to", index_key="video", index_base=1, video=SMALL)
    assert set(tool.arguments.model_json_schema()["properties"]) == {"from", "to", "video"}
    other = replace(clip, key="other")
    observation = await call(tool, [clip, other], **{"from": 0, "to": 12, "video": 2})
    assert observation.media[0].parent == "other"
    assert "video must be between 1 and 2" in await refusal(tool, [clip, other], **{"from": 0, "to": 12, "video": 0})


async def test_there_must_be_something_of_the_kind(clip, sound):
    assert "there is no video" in await refusal(CropVideo(video=SMALL), [sound], start_time=0, end_time=1)
    assert "there is no audio" in await refusal(CropAudio(), [clip], start_time=0, end_time=1)
    gone = replace(clip, source=None)
    assert "no file to look closer at" in await refusal(CropVideo(video=SMALL), [gone], start_time=0, end_time=9)


async def test_a_file_that_is_gone_costs_the_call_and_tells_no_path(clip):
    gone = replace(clip, source=replace(clip.source, path="secret.mp4"))
    text = await refusal(CropVideo(video=SMALL), [gone], start_time=0, end_time=9)
    assert text == "Error: this part of the video cannot be decoded"


async def test_frames_are_selected_by_their_number_and_shown_at_full_resolution(clip):
    assert clip.times == (0.0, 24.0, 48.0, 72.0, 96.0, 120.0, 144.0, 168.0)
    tool = SelectFrames(video=Video(min_pixels=3136, max_pixels=3136))
    observation = await call(tool, [clip], target_frames=[4, 1, 4])
    assert [still.times for still in observation.media] == [(0.0,), (72.0,)]
    assert observation.region.times == (0.0, 72.0)
    for still in observation.media:
        assert (still.kind, still.parent) == ("image", clip.key)
        assert still.original.shape == (112, 112, 3)
        assert still.data.shape == (56, 56, 3)


@pytest.mark.parametrize("frames", [[0], [9], [-1], [], [1.5], ["1"], [True], list(range(1, 8)) * 2, [10**400]])
async def test_frames_that_do_not_exist_are_refused(clip, frames):
    assert (await refusal(SelectFrames(), [clip], target_frames=frames)).startswith("Error: target_frames")


async def test_the_convention_that_counts_frames_from_0(clip):
    tool = SelectFrames(index_base=0, most=2, frames_key="indices")
    observation = await call(tool, [clip], indices=[0])
    assert observation.region.times == (0.0,)
    assert "between 0 and 7" in await refusal(tool, [clip], indices=[8])


async def test_a_span_of_an_audio_holds_its_own_samples(sound):
    observation = await call(CropAudio(), [sound], start_time=1.0, end_time=2.0)
    (part,) = observation.media
    assert part.data.shape == (16000,)
    np.testing.assert_allclose(part.data, 0.4, atol=1e-3)
    assert (part.parent, part.span, observation.region.span) == (sound.key, (1.0, 2.0), (1.0, 2.0))


async def test_a_still_can_be_zoomed_into(clip):
    from mmrl.tools.zoom import Zoom

    (still,) = (await call(SelectFrames(), [clip], target_frames=[1])).media
    observation = await call(Zoom(), [clip, still], bbox_2d=[0, 0, still.frame.seen[0] // 2, still.frame.seen[1] // 2])
    assert observation.region.box == (0.0, 0.0, 56.0, 56.0)
    expected = view(still.original, (0.0, 0.0, 56.0, 56.0), observation.media[0].frame.seen, label="")
    assert (observation.media[0].data == expected.data).all()


async def test_all_of_an_audio_is_the_audio_itself(sound):
    (part,) = (await call(CropAudio(), [sound], start_time=0, end_time=3)).media
    assert part.key == sound.key
    assert part.parent is None
