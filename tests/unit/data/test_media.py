"""What a row says of a medium is kept or refused, never lost."""

import math

import pytest

from mmrl.data.media import media_ref
from mmrl.types import MediaRef


def video(value):
    return media_ref(value, "video", "root", "videos.0")


def test_a_video_may_be_given_as_pictures_with_their_rate():
    expected = MediaRef(kind="video", pictures=("0.png", "1.png"), root="root", picture_fps=4.0)
    names = ["0.png", "1.png"]
    assert video({"pictures": names, "fps": 4}) == expected
    assert video({"video": names, "sample_fps": 4.0}) == expected
    assert video({"video": {"pictures": names, "fps": 4}}) == expected
    assert video({"pictures": names}) == video(names)
    assert video({"path": "v.mp4", "fps": 4}) == video("v.mp4")  # how closely to look, which is not the row's


@pytest.mark.parametrize("fps", [0, -1, math.nan, math.inf, 1e-9, 1e9, "4", True, 10**400])
def test_a_rate_of_pictures_that_is_none_is_refused(fps):
    with pytest.raises(ValueError, match=r"^videos\.0\.fps: pictures in a second must be"):
        video({"pictures": ["0.png"], "fps": fps})


def test_pictures_are_a_video_s():
    with pytest.raises(ValueError, match="names no file"):
        media_ref({"pictures": ["0.png"]}, "image", "root", "images.0")


def test_a_nested_mapping_keeps_its_span_and_frames():
    inner = {"path": "v.mp4", "span": [1, 2], "frames": 8}
    expected = MediaRef(kind="video", path="v.mp4", root="root", span=(1.0, 2.0), frames=8)
    assert video({"video": inner}) == expected
    assert video({"video": inner, "span": [3, 4]}).span == (3.0, 4.0)


def test_a_start_without_an_end_runs_to_the_end():
    assert video({"path": "v.mp4", "video_start": 2}).span == (2.0, math.inf)
    assert media_ref({"path": "a.wav", "audio_start": 0.5}, "audio", "", "a").span == (0.5, math.inf)
    assert video({"path": "v.mp4", "video_end": 3}).span == (0.0, 3.0)
    for start in (-1, "2", math.nan, True):
        with pytest.raises(ValueError, match=r"^videos\.0\.video_start: "):
            video({"path": "v.mp4", "video_start": start})


@pytest.mark.parametrize("frames", [0, -1, 10_001, 10**9, 2.0, True])
def test_a_number_of_frames_is_bounded(frames):
    with pytest.raises(ValueError, match=r"^videos\.0\.frames: must be a number of frames of a video, 1 to 10000"):
        video({"path": "v.mp4", "frames": frames})
