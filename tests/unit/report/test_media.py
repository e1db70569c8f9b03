"""What a run stores of its media."""

import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmrl.report.media import MAX_FRAMES, envelope, evenly, moments_of, save_medium
from mmrl.types import CoordinateFrame, Media, MediaRef, Region, Turn


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "media").mkdir()
    return tmp_path


def files(folder, ending):
    return sorted((folder / "media").glob(f"*{ending}"))


def pixels_of(path):
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())))


def test_a_picture_is_stored_as_it_was_seen(folder, noise):
    pixels = noise(60, 40)
    frame = CoordinateFrame(original=(120, 80), seen=(60, 40), scale=(2.0, 2.0))
    medium = Media(kind="image", key="k", data=pixels, frame=frame, times=(2.5,), parent="v", label="frame")
    assert save_medium(folder, medium) == {
        "kind": "image",
        "seen": (60, 40),
        "original": (120, 80),
        "offset": (0.0, 0.0),
        "scale": (2.0, 2.0),
        "times": [2.5],
        "span": None,
        "source": None,
        "parent": "v",
        "label": "frame",
        "file": "media/k.png",
    }
    assert np.array_equal(pixels_of(folder / "media/k.png"), pixels)
    assert [path.name for path in (folder / "media").iterdir()] == ["k.png"]


def test_frames_that_looks_share_are_stored_once(folder, make_video):
    sparse = save_medium(folder, make_video("sparse", [0, 60, 120], (0.0, 120.0)))
    dense = save_medium(folder, make_video("dense", [0, 30, 60, 90, 120], (0.0, 120.0)))
    assert len(files(folder, ".jpg")) == 5
    assert [frame["file"] for frame in sparse["frames"]] == [frame["file"] for frame in dense["frames"][::2]]
    assert [frame["time"] for frame in dense["frames"]] == [0.0, 30.0, 60.0, 90.0, 120.0]
    stored = pixels_of(folder / dense["frames"][3]["file"])
    assert stored.shape == (50, 100, 3)
    assert np.abs(stored.astype(int) - 90).max() <= 2


def test_of_a_long_video_an_even_choice_is_stored_and_every_time_kept(folder, make_video):
    line = save_medium(folder, make_video("v", range(250), (0.0, 250.0)), moments=[100.4, 1000.0])
    times = [frame["time"] for frame in line["frames"]]
    assert len(line["times"]) == 250
    assert times == sorted(set(times))
    assert MAX_FRAMES <= len(times) <= MAX_FRAMES + 1
    assert {0.0, 100.0, 249.0} <= set(times)
    assert max(b - a for a, b in zip(times, times[1:], strict=False)) <= 4


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(3, 5, [0, 1, 2]), (9, 3, [0, 4, 8]), (9, 1, [4]), (9, 0, []), (0, 3, [])],
)
def test_evenly(count, most, expected):
    assert evenly(count, most) == expected


def test_moments_are_those_of_boxes_then_of_the_gold_track(make_trajectory):
    box = (0.0, 0.0, 1.0, 1.0)
    regions = (
        Region(on="v", box=box, times=(1.0, 2.0)),
        Region(on="v", box=box, span=(4.0, 6.0)),
        Region(on="v", times=(9.0,)),
    )
    trajectory = make_trajectory(Turn(segment=0, text="", regions=regions))
    track = [(float(time), box) for time in range(100, 200)]
    moments = moments_of(trajectory, track)
    assert moments[:3] == [1.0, 2.0, 5.0]
    assert (len(moments), moments[3], moments[-1]) == (16, 100.0, 199.0)


def test_large_frames_are_stored_small(folder, noise):
    frame = CoordinateFrame(original=(960, 480), seen=(960, 480))
    save_medium(folder, Media(kind="video", key="v", data=noise(960, 480)[None], frame=frame, times=(0.0,)))
    (path,) = files(folder, ".jpg")
    assert pixels_of(path).shape == (80, 160, 3)


def test_a_sound_can_be_played_as_it_was_heard(folder, make_audio):
    sound = make_audio("a", 2)
    line = save_medium(folder, sound)
    samples, rate = soundfile.read(io.BytesIO((folder / line["file"]).read_bytes()))
    assert (line["file"], rate, line["span"], line["source"]) == ("media/a.flac", 16_000, (0.0, 2.0), "talk.wav")
    assert np.abs(samples - sound.data).max() <= 1 / 32_000


def test_the_envelope_holds_the_loudest_magnitude_of_each_stretch():
    samples = np.zeros(800, dtype=np.float32)
    samples[[0, 401, 799]] = [0.25, -0.5, 1.0]
    peaks = envelope(samples)
    assert len(peaks) == 400
    assert {place: peak for place, peak in enumerate(peaks) if peak} == {0: 0.25, 200: 0.5, 399: 1.0}
    assert envelope(np.array([0.5, float("nan"), -0.25], dtype=np.float32)) == [0.5, 0.0, 0.25]
    assert envelope(np.zeros(0, dtype=np.float32)) == []


def test_a_long_or_an_empty_sound_is_not_stored(folder, make_audio):
    hour = save_medium(folder, make_audio("hour", 600))
    # 50 s of what no codec makes smaller.
    noisy = np.random.default_rng(0).uniform(-1, 1, 800_000).astype(np.float32)
    loud = save_medium(folder, Media(kind="audio", key="loud", data=noisy))
    empty = save_medium(folder, Media(kind="audio", key="empty", data=np.zeros(0, dtype=np.float32)))
    assert [line["file"] for line in (hour, loud, empty)] == [None] * 3
    assert (len(hour["envelope"]), hour["span"]) == (400, (0.0, 600.0))
    assert list((folder / "media").iterdir()) == []


def test_the_word_for_a_file_tells_files_apart(folder):
    samples = np.zeros(16, dtype=np.float32)

    def source(**fields):
        ref = MediaRef(kind="audio", **fields)
        return save_medium(folder, Media(kind="audio", key="a", data=samples, source=ref))["source"]

    words = [source(path="x.wav"), source(data=b"x"), source(data=b"y"), source(pictures=("1.png", "2.png"))]
    assert len(set(words)) == 4
    assert source(data=b"x") == words[1]
