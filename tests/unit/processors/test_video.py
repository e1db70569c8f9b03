"""Every frame that a model sees is the one of its time, whatever the file is like and whatever decodes it."""

import os
import subprocess
import sys
from dataclasses import replace

import media_files
import numpy as np
import pytest
from media_files import HEIGHT, WIDTH, packet_places, read_number, write_video

from mmrl.errors import ConfigError, MediaError
from mmrl.processors import pool
from mmrl.processors.audio import Audio
from mmrl.processors.video import BACKENDS, Video, check_backend
from mmrl.types import MediaRef

AS_IT_IS = {"min_pixels": 4 * 784, "max_pixels": 30 * 784}
JUMPY_MS = [n * 20 if n < 20 else 400 + (n - 20) * 170 for n in range(60)]
"""Fast, then slow: the average says nothing."""


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    try:
        check_backend(request.param)
    except MediaError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture(scope="module", autouse=True)
def _no_process_is_left():
    yield
    pool.POOL.close()
    assert children() == []


def children():
    listing = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return [line for line in listing.stdout.splitlines() if "mmrl.processors.worker" in line]


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    """A folder with one file for each thing that may be odd about a video."""
    folder = tmp_path_factory.mktemp("videos")
    plain, matroska = folder / "plain.mp4", folder / "plain.mkv"
    write_video(plain)
    write_video(folder / "sound.mp4", audio=True)
    write_video(folder / "one_slice.mp4", options={"x264-params": "slices=1:sliced-threads=0"})
    write_video(matroska, container="matroska")
    write_video(folder / "variable.mp4", times_ms=JUMPY_MS)
    write_video(folder / "variable.mkv", times_ms=JUMPY_MS, container="matroska")
    for angle in (90, 180, 270):
        write_video(folder / f"turned{angle}.mp4", rotation=angle)
    write_video(folder / "one.mp4", numbers=[7])
    write_video(folder / "old.avi", container="avi", codec="mpeg4")
    write_video(folder / "hidden.webm", container="webm", codec="libvpx", options={"auto-alt-ref": "1"})
    write_video(folder / "late.mp4", times_ms=[5000 + 50 * n for n in range(60)])
    unseekable = media_files.Unseekable()
    write_video(unseekable, container="matroska")
    (folder / "no_index.mkv").write_bytes(unseekable.data)
    (folder / "no_rate.mkv").write_bytes(media_files.without_rate(matroska.read_bytes()))
    (folder / "ten_hours.mp4").write_bytes(media_files.claim_duration(plain.read_bytes(), 36_000))
    (folder / "ten_hours.mkv").write_bytes(media_files.claim_duration_mkv(matroska.read_bytes(), 36_000))
    (folder / "truncated.mp4").write_bytes(plain.read_bytes()[:-2000])  # its index stands at the end
    (folder / "truncated.mkv").write_bytes(matroska.read_bytes()[: matroska.stat().st_size * 6 // 10])
    return folder


def load(folder, name, backend="auto", span=None, **fields):
    ref = MediaRef(kind="video", path=name, root=str(folder), span=span)
    return Video(**{**AS_IT_IS, "backend": backend, **fields}).load(ref)


def numbers(medium):
    return [read_number(frame) for frame in medium.data]


STEADY = [n / 20 for n in range(60)]
JUMPY = [ms / 1000 for ms in JUMPY_MS]


@pytest.mark.parametrize("frames", [60, 8])
@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("plain.mp4", STEADY),
        ("sound.mp4", STEADY),
        ("plain.mkv", STEADY),
        ("no_index.mkv", STEADY),
        ("no_rate.mkv", STEADY),
        ("variable.mp4", JUMPY),
        ("variable.mkv", JUMPY),
        ("old.avi", STEADY),
        ("hidden.webm", STEADY),
        ("late.mp4", STEADY),
        ("ten_hours.mp4", STEADY),
        ("ten_hours.mkv", STEADY),
    ],
)
def test_frames_are_those_of_their_times(sheet, backend, name, times, frames):
    try:
        medium = load(sheet, name, backend, frames=frames)
    except MediaError as error:
        # decord wants more of a file than others do; it may refuse, never mistake one frame for another.
        assert backend == "decord"
        assert str(error).startswith(f"video {name}: ")  # noqa: PT017
        assert name in ("no_index.mkv", "ten_hours.mkv", "no_rate.mkv", "late.mp4")  # noqa: PT017
        return
    shown = numbers(medium)
    assert medium.times == pytest.approx([times[number] for number in shown], abs=1e-3)
    length = medium.span[1]
    wanted = [n * length / frames for n in range(frames)]
    due = sorted({max(n for n, time in enumerate(times) if time <= moment + 6e-4) for moment in wanted})
    assert shown == due + due[-1:] * (len(due) % 2)


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_rotation_is_applied_once(sheet, backend, angle):
    medium = load(sheet, f"turned{angle}.mp4", backend, frames=4)
    turned = angle != 180
    assert medium.frame.original == ((HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT))
    assert medium.data.shape[1:3] == (medium.frame.seen[1], medium.frame.seen[0])
    assert (medium.data.shape[1] > medium.data.shape[2]) == turned
    # The angle is what makes the stored picture upright; turning back must give the picture that was stored.
    assert [read_number(np.rot90(frame, -angle // 90)) for frame in medium.data] == [0, 15, 30, 45]


def test_one_frame_is_shown_twice(sheet, backend):
    medium = load(sheet, "one.mp4", backend)
    assert numbers(medium) == [7, 7]
    assert medium.times == (0.0, 0.0)


def test_a_truncated_file_gives_what_is_there_or_one_error(sheet, backend):
    with pytest.raises(MediaError, match=r"^video truncated.mp4: not a media file"):
        load(sheet, "truncated.mp4", backend, frames=8)
    medium = load(sheet, "truncated.mkv", backend, frames=8)
    shown = numbers(medium)
    assert medium.times == pytest.approx([number / 20 for number in shown], abs=1e-3)
    assert 20 < shown[-1] < 40


def test_what_a_file_holds(sheet):
    def facts(name):
        return Video().facts(MediaRef(kind="video", path=name, root=str(sheet)))

    found = facts("turned90.mp4")
    assert (found.codec, found.size, found.rotation, found.has_audio) == ("h264", (HEIGHT, WIDTH), 1, False)
    assert (found.duration, found.is_vfr) == (pytest.approx(3.0), False)
    assert found.times == pytest.approx(STEADY)
    assert facts("sound.mp4").has_audio
    for name in ("variable.mp4", "variable.mkv"):
        assert facts(name).is_vfr
        assert facts(name).times == pytest.approx(JUMPY)
    for name in ("no_index.mkv", "no_rate.mkv", "ten_hours.mp4", "ten_hours.mkv", "late.mp4"):
        assert facts(name).duration == pytest.approx(3.0, abs=0.06)
        assert not facts(name).is_vfr


# ---- damage --------------------------------------------------------------------------------------------------------


def damage(folder, source, name, number, offset, value=None):
    """Overwrite the rest of one packet's bytes from `offset` on, with noise or with a value."""
    data = bytearray((folder / source).read_bytes())
    place, size = packet_places(folder / source)[number]
    noise = np.random.default_rng(number).integers(0, 256, size - offset, dtype=np.uint8).tobytes()
    data[place + offset : place + size] = noise if value is None else bytes([value]) * (size - offset)
    (folder / name).write_bytes(data)


@pytest.mark.parametrize("number", [1, 25, 30, 58])
@pytest.mark.parametrize("source", ["plain.mp4", "plain.mkv", "one_slice.mp4"])
def test_damage_is_an_error_and_never_a_wrong_frame(sheet, backend, source, number):
    """In frames of one slice a decoder that is not strict paints over what is broken."""
    for offset, value in ((12, None), (30, 0)):
        damage(sheet, source, "damaged", number, offset, value)
        for frames in (60, 12):
            try:
                medium = load(sheet, "damaged", backend, frames=frames)
            except MediaError as error:
                assert str(error).startswith("video damaged: ")  # noqa: PT017
            else:  # nothing that was asked for is touched
                assert frames == 12
                assert [n / 20 for n in numbers(medium)] == pytest.approx(medium.times, abs=1e-3)


def test_frames_before_the_damage_can_still_be_seen(sheet, backend):
    damage(sheet, "plain.mp4", "half.mp4", 35, 8)
    with pytest.raises(MediaError, match=r"^video half.mp4: "):
        load(sheet, "half.mp4", backend, frames=60)
    if backend != "decord":  # it reads on in the background
        assert numbers(load(sheet, "half.mp4", backend, span=(0.0, 1.0), frames=4)) == [0, 5, 10, 15]
    if backend == "pyav":  # from a key frame behind the damage
        assert numbers(load(sheet, "half.mp4", backend, span=(2.0, 3.0), frames=4)) == [40, 45, 50, 55]


# ---- files that are no video ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    write_video(folder / "plain.mp4")
    plain = (folder / "plain.mp4").read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(100_000))
    (folder / "text.mp4").write_text("This is not a video.\n" * 100)
    (folder / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3,\n{folder}/plain.mp4\n#EXT-X-ENDLIST\n"
    )
    (folder / "list.mp4").write_bytes((folder / "list.m3u8").read_bytes())
    (folder / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {folder}/plain.mp4\n")
    (folder / "head.mp4").write_bytes(plain[:1000])
    write_video(folder / "raw.h264", container="h264")
    media_files.write_sound(folder / "sound.mp4")
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "out.mp4").symlink_to(sys.executable)
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.mp4", "not a media file of a known format"),
        ("random.mp4", "not a media file of a known format"),
        ("text.mp4", "not a media file of a known format"),
        ("list.m3u8", "not a media file of a known format"),
        ("list.mp4", "not a media file of a known format"),
        ("concat.mp4", "not a media file of a known format"),
        ("raw.h264", "not a media file of a known format"),
        ("head.mp4", "not a media file of a known format"),
        ("sound.mp4", "holds no video"),
        ("folder.mp4", "cannot be read (not a regular file)"),
        ("pipe.mp4", "cannot be read (not a regular file)"),
        ("absent.mp4", "cannot be read (No such file or directory)"),
        ("out.mp4", "leads out of its folder"),
        ("../x.mp4", "leads out of its folder"),
        ("/etc/passwd", "leads out of its folder"),
        ("concat:plain.mp4|plain.mp4", "cannot be read (No such file or directory)"),
        ("http://127.0.0.1/a.mp4", "cannot be read (No such file or directory)"),
        ("a\0b", "not a usable path"),
    ],
)
def test_what_is_no_video_costs_one_clear_error(hostile, name, message):
    with pytest.raises(MediaError) as error:
        load(hostile, name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert name.replace("\0", "\\x00") in str(error.value)
    assert load(hostile, "plain.mp4", frames=2).times == (0.0, 1.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_source_pixels": 1000}, "192 x 128 is over the cap of 1000 pixels"),
        ({"max_source_seconds": 2.9}, "3 s is over the cap of 2.9 s"),
        ({"max_source_bytes": 1000}, "file is larger than 1000 bytes"),
        ({"max_tokens": 1}, "one step takes 2 tokens, more than max_tokens = 1"),
    ],
)
def test_caps(hostile, fields, message):
    with pytest.raises(MediaError, match=f"^video plain.mp4: {message}"):
        load(hostile, "plain.mp4", **fields)
    same = {"max_source_pixels": WIDTH * HEIGHT, "max_source_seconds": 3.0}
    assert load(hostile, "plain.mp4", frames=2, **same).times == (0.0, 1.5)


# ---- what comes back -----------------------------------------------------------------------------------------------


def test_a_look_is_described(sheet):
    medium = load(sheet, "plain.mp4", fps=2)
    assert (medium.kind, medium.label, medium.data.dtype) == ("video", "plain.mp4", np.uint8)
    assert medium.times == (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
    assert medium.span == (0.0, pytest.approx(3.0))
    assert medium.source == MediaRef(kind="video", path="plain.mp4", root=str(sheet))
    assert medium.frame.original == (WIDTH, HEIGHT)
    assert medium.frame.to_original((0, 0, *medium.frame.seen)) == pytest.approx((0, 0, WIDTH, HEIGHT))


def test_a_span_is_looked_at_by_the_file_s_clock(sheet):
    medium = load(sheet, "variable.mp4", span=(1.0, 99.0), fps=2)
    assert medium.span == (1.0, pytest.approx(7.1, abs=0.1))
    assert medium.times == pytest.approx([JUMPY[number] for number in numbers(medium)], abs=1e-3)
    assert numbers(medium)[:2] == [23, 26]  # shown at 1.0 and 1.5 s
    with pytest.raises(MediaError, match="^video plain.mp4: the span 3-4 s is empty or outside; it lasts 3 s"):
        load(sheet, "plain.mp4", span=(3.0, 4.0))


def test_a_row_may_say_how_many_frames(sheet, pictures):
    ref = MediaRef(kind="video", path="plain.mp4", root=str(sheet), frames=6)
    medium = Video(**AS_IT_IS).load(ref)
    assert numbers(medium) == [0, 10, 20, 30, 40, 50]
    assert len(Video(**AS_IT_IS, frames=2).load(medium.source).data) == 2  # a tool looks with its own number
    assert numbers(Video(**AS_IT_IS).load(replace(pictures, frames=2))) == [0, 5]
    with pytest.raises(MediaError, match="^video plain.mp4: frames is 0; it must be at least 1"):
        Video().load(replace(ref, frames=0))


def test_a_row_gets_no_more_frames_than_the_processor_gives(sheet):
    ref = MediaRef(kind="video", path="plain.mp4", root=str(sheet), frames=10**9)
    assert numbers(Video(**AS_IT_IS, max_frames=4).load(ref)) == [0, 15, 30, 45]


@pytest.mark.parametrize(
    ("delays", "seen", "heard"), [((0, 2000), 0.0, 2.0), ((2000, 0), 2.0, 0.0), ((7000, 6000), 1.0, 0.0)]
)
@pytest.mark.parametrize("container", ["matroska", "mp4"])
def test_a_video_and_its_sound_have_one_clock(tmp_path, backend, container, delays, seen, heard):
    """Second 0 is where the first of both starts."""
    times = [delays[0] + 50 * n for n in range(60)]
    write_video(tmp_path / "v", times_ms=times, container=container, audio=True, sound_ms=delays[1])
    try:
        medium = load(tmp_path, "v", backend, frames=60)
    except MediaError as error:
        assert backend == "decord"
        assert str(error).startswith("video v: ")  # noqa: PT017
        return
    lead = 0.065 if container == "mp4" else 1e-3  # of the AAC encoder, which an mp4 may show
    assert medium.times == pytest.approx([seen + n / 20 for n in range(60)], abs=lead)
    assert numbers(medium) == list(range(60))
    assert medium.span == (pytest.approx(seen, abs=lead), pytest.approx(seen + 3.0, abs=lead))
    sound = Audio().load(replace(medium.source, kind="audio"))
    loud = np.flatnonzero(np.abs(sound.data) > 0.1)[0] / 16_000
    assert sound.span[0] == 0.0
    assert loud == pytest.approx(heard, abs=0.07)
    (still,) = Video(backend=backend).stills(medium.source, [seen + 1.09])
    assert read_number(still.original) in (20, 21)
    if seen > 1:
        with pytest.raises(MediaError, match=r"the span 0-1 s is empty or outside; it lasts from 2"):
            load(tmp_path, "v", backend, span=(0.0, 1.0))


def test_nested_looks_share_their_steps(sheet):
    sparse, dense = (load(sheet, "plain.mp4", frames=n, densest=32) for n in (8, 32))
    assert numbers(sparse) == [n for start in (0, 8, 16, 24) for n in numbers(dense)[start : start + 2]]
    pairs = {dense.data[n : n + 2].tobytes() for n in range(0, 32, 2)}
    assert {sparse.data[n : n + 2].tobytes() for n in range(0, 8, 2)} < pairs


def test_a_key_covers_pixels_times_and_span(sheet, tmp_path):
    write_video(tmp_path / "still.mp4", numbers=[5] * 60, options={"qp": "0"})
    keys = [
        load(tmp_path, "still.mp4", frames=2).key,
        load(tmp_path, "still.mp4", frames=2, span=(0.0, 2.0)).key,  # other times, equal pixels
        load(tmp_path, "still.mp4", frames=2, span=(0.01, 3.0)).key,  # another span, equal times and pixels
        load(sheet, "plain.mp4", frames=2).key,
    ]
    assert len(set(keys)) == 4
    data = (tmp_path / "still.mp4").read_bytes()
    video = Video(**AS_IT_IS, frames=2)
    assert video.load(MediaRef(kind="video", data=data)).key == keys[0]


def test_stills_are_the_frame_s_own_pixels(sheet, backend):
    ref = MediaRef(kind="video", path="turned90.mp4", root=str(sheet))
    video = Video(backend=backend, min_pixels=784, max_pixels=12 * 784)
    late, early = video.stills(ref, [2.98, 0.55])
    for still, number in ((late, 59), (early, 11)):
        assert still.kind == "image"
        assert still.original.shape == (WIDTH, HEIGHT, 3)
        assert read_number(np.rot90(still.original, -1)) == number
        assert still.times == (pytest.approx(number / 20),)
        assert still.source == ref
        assert still.frame.original == (HEIGHT, WIDTH)
        assert still.data.shape[0] * still.data.shape[1] <= 12 * 784
    assert late.key != early.key
    same, again = video.stills(ref, [0.55, 0.59])  # both within frame 11
    assert same.key == again.key == early.key
    with pytest.raises(MediaError, match="^video turned90.mp4: 3.5 s is outside; it lasts 3 s"):
        video.stills(ref, [0.0, 3.5])


def test_moments_that_look_alike_are_different_stills(tmp_path):
    write_video(tmp_path / "still.mp4", numbers=[5] * 10, options={"qp": "0"})
    first, second = Video().stills(MediaRef(kind="video", path="still.mp4", root=str(tmp_path)), [0.0, 0.1])
    assert (first.original == second.original).all()
    assert first.key != second.key


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image as Pillow

    for number in range(10):
        Pillow.fromarray(media_files.draw_number(number)).save(tmp_path / f"{number}.png")
    return MediaRef(kind="video", pictures=tuple(f"{n}.png" for n in range(10)), root=str(tmp_path))


def test_a_video_may_be_given_as_pictures(pictures):
    video = Video(**AS_IT_IS, fps=2)
    medium = video.load(pictures)
    assert numbers(medium) == list(range(10))
    assert medium.times == tuple(n / 2 for n in range(10))
    assert medium.span == (0.0, 5.0)
    assert medium.frame.original == (WIDTH, HEIGHT)
    part = video.load(replace(pictures, span=(1.0, 2.4)))
    assert numbers(part) == [2, 3, 4, 4]
    assert numbers(Video(**AS_IT_IS, frames=2).load(pictures)) == [0, 5]
    (still,) = video.stills(pictures, [1.7])
    assert read_number(still.original) == 3
    assert still.times == (1.5,)


def test_the_times_of_pictures_are_those_of_the_row_however_they_are_looked_at(pictures):
    looks = [Video(**AS_IT_IS, fps=fps).load(pictures) for fps in (1, 2, 4)]
    assert {look.span for look in looks} == {(0.0, 5.0)}
    assert [numbers(look) for look in looks] == [[0, 2, 4, 6, 8, 8], list(range(10)), list(range(10))]
    quick = replace(pictures, picture_fps=4.0)
    medium = Video(**AS_IT_IS, fps=1).load(quick)
    assert medium.span == (0.0, 2.5)
    assert medium.source == quick
    assert numbers(Video(**AS_IT_IS, fps=8).load(replace(medium.source, span=(1.0, 2.0)))) == [4, 5, 6, 7]
    (still,) = Video(fps=4).stills(medium.source, [1.3])
    assert (read_number(still.original), still.times) == (5, (1.25,))
    with pytest.raises(MediaError, match=r"picture_fps is 0; it must be more than 0"):
        Video().load(replace(pictures, picture_fps=0))


def test_pictures_are_confined_and_of_one_size(pictures, tmp_path):
    from PIL import Image as Pillow

    Pillow.new("RGB", (64, 64)).save(tmp_path / "3.png")
    with pytest.raises(MediaError, match=r"3.png is 64 x 64, the first picture 192 x 128"):
        Video(fps=2).load(pictures)
    with pytest.raises(MediaError, match="leads out of its folder"):
        Video().load(replace(pictures, pictures=("../0.png",)))
    with pytest.raises(MediaError, match="0.5 s is outside|6 s is outside"):
        Video(fps=2).stills(pictures, [6.0])


def test_the_backend_that_is_used_is_told(backend):
    from importlib.metadata import version

    package = "av" if backend == "pyav" else backend
    assert Video(backend=backend).provenance() == {"video_backend": f"{backend} {version(package)}"}
    assert Video().provenance() == {"video_backend": f"pyav {version('av')}"}


def test_a_backend_that_does_not_work_is_a_config_error(sheet, monkeypatch, tmp_path):
    (tmp_path / "decord.py").write_text("raise ImportError('libavcodec.so.58: not found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("mmrl.processors.video._WORKING", {})
    pool.POOL.close()
    with pytest.raises(
        ConfigError, match="video backend decord: ImportError: libavcodec.so.58: not found; `mmrl doctor`"
    ):
        load(sheet, "plain.mp4", "decord")
    pool.POOL.close()


def test_a_file_that_is_replaced_is_probed_anew(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, numbers=range(10))
    assert numbers(load(tmp_path, "a.mp4", frames=4)) == [0, 2, 5, 7]
    write_video(path, numbers=range(20, 40))
    assert numbers(load(tmp_path, "a.mp4", frames=4)) == [20, 25, 30, 35]
