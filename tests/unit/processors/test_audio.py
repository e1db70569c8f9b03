"""Sound reaches the model at 16 kHz, mono, from the second that was asked for."""

import os
from dataclasses import replace

import media_files
import numpy as np
import pytest
import soundfile
from media_files import write_sound, write_sound_in_pieces, write_video

from mmrl.errors import MediaError
from mmrl.processors.audio import Audio
from mmrl.types import MediaRef


def load(path, span=None, **fields):
    return Audio(**fields).load(MediaRef(kind="audio", path=path.name, root=str(path.parent), span=span))


def tone(rate, seconds, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def pitch(samples):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.argmax(spectrum) * 16_000 / len(samples)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 47_952, 48_000, 88_200, 96_000, 192_000])
def test_any_rate_becomes_16_khz(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate, 2.0), rate, subtype="FLOAT")
    medium = load(tmp_path / "a.wav")
    assert medium.data.dtype == np.float32
    assert medium.data.shape == (32_000,)
    assert medium.span == (0.0, 2.0)
    expected = tone(16_000, 2.0)
    assert np.abs(medium.data - expected)[800:-800].max() < 0.01


@pytest.mark.parametrize("rate", [1, 3_999, 44_101, 384_001, 1_000_003, 2**31 - 1])
def test_a_rate_that_takes_gigabytes_to_convert_is_refused(tmp_path, rate):
    soundfile.write(tmp_path / "odd.wav", tone(16_000, 1.0), rate)
    with pytest.raises(MediaError, match=f"^audio odd.wav: its sampling rate of {rate} Hz is not supported; convert"):
        load(tmp_path / "odd.wav")


def test_nothing_above_8_khz_folds_back(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(192_000, 1.0, hertz=15_000), 192_000)
    assert np.abs(load(tmp_path / "a.wav").data[800:-800]).max() < 0.01


def test_channels_are_averaged(tmp_path):
    channels = np.zeros((16_000, 8), dtype=np.float32)
    channels[:, 3] = 0.8
    soundfile.write(tmp_path / "eight.wav", channels, 16_000, subtype="FLOAT")
    assert load(tmp_path / "eight.wav").data == pytest.approx(np.full(16_000, 0.1), abs=1e-6)


def test_a_span_is_exact_to_the_sample(tmp_path):
    ramp = np.linspace(0, 1, 160_000, dtype=np.float32)
    soundfile.write(tmp_path / "ramp.wav", ramp, 16_000, subtype="FLOAT")
    medium = load(tmp_path / "ramp.wav", span=(2.5, 4.0))
    assert (medium.data == ramp[40_000:64_000]).all()
    assert medium.span == (2.5, 4.0)
    assert load(tmp_path / "ramp.wav", span=(9.0, 99.0)).span == (9.0, 10.0)


@pytest.mark.parametrize("container", ["wav", "flac", "ogg", "mp3"])
def test_audio_files(tmp_path, container):
    path = tmp_path / f"a.{container}"
    soundfile.write(path, tone(16_000, 3.0), 16_000)
    medium = load(path, span=(1.0, 2.0))
    assert medium.data.shape == (16_000,)
    assert pitch(medium.data) == pytest.approx(440, abs=2)
    assert np.abs(medium.data).max() == pytest.approx(0.5, abs=0.1)


@pytest.fixture
def steps(tmp_path):
    """A video of 12 s whose sound is a tone of 300, 400, 500 ... Hz, a second each."""
    wave = np.concatenate([tone(16_000, 1.0, 300 + 100 * second) for second in range(12)])
    write_video(tmp_path / "steps.mp4", numbers=range(240), audio=True, wave=wave)
    return tmp_path / "steps.mp4"


def test_the_sound_of_a_video_is_cut_where_it_was_asked_for(steps):
    whole = load(steps)
    assert whole.span == (0.0, pytest.approx(12.0, abs=0.1))
    for second in range(12):
        assert pitch(whole.data[second * 16_000 + 1600 :][:12_800]) == pytest.approx(300 + 100 * second, abs=3)
        part = load(steps, span=(second + 0.1, second + 0.9))
        assert part.data.shape == (12_800,)
        assert part.span == (pytest.approx(second + 0.1), pytest.approx(second + 0.9))
        assert pitch(part.data) == pytest.approx(300 + 100 * second, abs=3)
    # A part that is decoded from the middle on has the very samples of the whole.
    part = load(steps, span=(7.25, 8.25))
    assert np.abs(part.data - whole.data[7 * 16_000 + 4000 :][:16_000]).max() < 1e-4


def test_a_gap_in_the_sound_is_silent_and_what_follows_keeps_its_time(tmp_path):
    path = tmp_path / "gap.mkv"
    write_sound_in_pieces(path, [(0.0, tone(16_000, 2.0, 300)), (5.0, tone(16_000, 2.0, 700))])
    whole = load(path)
    assert whole.span == (0.0, pytest.approx(7.0))
    expected = np.concatenate([tone(16_000, 2.0, 300), np.zeros(48_000, np.float32), tone(16_000, 2.0, 700)])
    assert np.abs(whole.data - expected).max() < 1e-6
    for span in ((1.0, 6.0), (3.0, 6.0), (5.5, 6.5), (1.5, 4.0)):
        part = load(path, span=span)
        assert part.span == span
        assert np.abs(part.data - expected[int(span[0] * 16_000) : int(span[1] * 16_000)]).max() < 1e-6
    with pytest.raises(MediaError, match="holds no sound in this part"):
        load(path, span=(2.5, 4.5))
    with pytest.raises(MediaError, match="lasts longer than max_seconds = 6;"):
        load(path, max_seconds=6)


def test_a_claimed_gap_of_days_is_not_filled(tmp_path):
    write_sound_in_pieces(tmp_path / "days.mkv", [(0.0, tone(16_000, 1.0)), (2e5, tone(16_000, 1.0))])
    with pytest.raises(MediaError, match="lasts longer than max_seconds = 600;"):
        load(tmp_path / "days.mkv")


def test_sound_that_overlaps_is_heard_once(tmp_path):
    wave = tone(16_000, 3.0, 300)
    write_sound_in_pieces(tmp_path / "twice.mkv", [(0.0, wave[:32_000]), (1.5, wave[24_000:])], packet=32_000)
    assert np.abs(load(tmp_path / "twice.mkv").data - wave).max() < 1e-6


def test_bytes_and_files_have_one_key_and_spans_their_own(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(32_000, dtype=np.float32), 16_000)
    medium = load(tmp_path / "a.wav", span=(0.0, 1.0))
    data = (tmp_path / "a.wav").read_bytes()
    assert Audio().load(MediaRef(kind="audio", data=data, span=(0.0, 1.0))).key == medium.key
    assert load(tmp_path / "a.wav", span=(1.0, 2.0)).key != medium.key
    assert medium.source == MediaRef(kind="audio", path="a.wav", root=str(tmp_path), span=(0.0, 1.0))
    assert medium.label == "a.wav"
    assert Audio().load(replace(medium.source, span=(1.0, 2.0))).span == (1.0, 2.0)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("hostile")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "random.wav").write_bytes(np.random.default_rng(0).bytes(50_000))
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3,\na.wav\n#EXT-X-ENDLIST\n")
    soundfile.write(tmp_path / "none.wav", np.zeros(0, dtype=np.float32), 16_000)
    soundfile.write(tmp_path / "short.wav", np.zeros(100, dtype=np.float32), 16_000)
    soundfile.write(tmp_path / "long.wav", np.zeros(160_000, dtype=np.float32), 16_000)
    broken = tone(16_000, 1.0)
    broken[77] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, 16_000, subtype="FLOAT")
    broken[77] = np.inf
    soundfile.write(tmp_path / "inf.wav", broken, 16_000, subtype="FLOAT")
    write_video(tmp_path / "mute.mp4", numbers=range(5))
    write_sound(tmp_path / "long.m4a", seconds=10)
    (tmp_path / "ten_hours.m4a").write_bytes(media_files.claim_duration((tmp_path / "long.m4a").read_bytes(), 36_000))
    os.mkfifo(tmp_path / "pipe.wav")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("empty.wav", {}, "not a media file of a known format"),
        ("random.wav", {}, "not a media file of a known format"),
        ("list.m3u8", {}, "not a media file of a known format"),
        ("none.wav", {}, "holds no sound"),
        ("short.wav", {}, "0.00625 s is less than min_seconds = 0.1"),
        ("nan.wav", {}, "holds samples that are not finite numbers"),
        ("inf.wav", {}, "holds samples that are not finite numbers"),
        ("mute.mp4", {}, "holds no sound"),
        ("long.wav", {"max_seconds": 9.9}, "lasts longer than max_seconds = 9.9; give a span or raise it"),
        ("long.m4a", {"max_seconds": 9.9}, "lasts longer than max_seconds = 9.9; give a span or raise it"),
        ("long.wav", {"max_source_bytes": 1000}, "file is larger than 1000 bytes"),
        ("long.wav", {"span": (10.0, 11.0)}, "the span 10-11 s is empty or outside; it lasts 10 s"),
        ("long.wav", {"span": (5.0, 4.0)}, "the span 5-4 s is empty or outside"),
        ("long.wav", {"span": (float("nan"), 4.0)}, "the span nan-4 s is empty or outside"),
        ("long.m4a", {"span": (11.0, 12.0)}, "holds no sound in this part"),
        ("long.m4a", {"span": (5.0, 4.0)}, "the span 5-4 s is empty or outside"),
        ("long.m4a", {"span": (float("nan"), 4.0)}, "the span nan-4 s is empty or outside"),
        ("pipe.wav", {}, "cannot be read (not a regular file)"),
        ("absent.wav", {}, "cannot be read (No such file or directory)"),
        ("../a.wav", {}, "leads out of its folder"),
    ],
)
def test_what_is_no_sound_costs_one_clear_error(hostile, name, fields, message):
    span = fields.get("span")
    ref = MediaRef(kind="audio", path=name, root=str(hostile), span=span)
    with pytest.raises(MediaError) as error:
        Audio(**{key: value for key, value in fields.items() if key != "span"}).load(ref)
    assert str(error.value).startswith(f"audio {name}: {message}")


def test_what_a_header_claims_does_not_count(hostile):
    assert load(hostile / "ten_hours.m4a").span == (0.0, pytest.approx(10.0, abs=0.1))
    assert load(hostile / "long.m4a", span=(2.0, 5.0), max_seconds=4).span == (2.0, 5.0)
