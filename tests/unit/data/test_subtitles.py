"""Subtitle files, well-formed and otherwise, become a bounded number of lines with their times."""

import os

import pytest

from mmrl.data.subtitles import (
    MAX_FILE_BYTES,
    MAX_LINE_CHARS,
    MAX_LINES,
    parse_cues,
    read_subtitles,
    subtitle_text,
    with_subtitles,
    without_tags,
)
from mmrl.types import Message, Part

SRT = (
    "\ufeff1\r\n00:00:01,500 --> 00:00:03,000\r\n<i>Hello</i>,\r\nyou\r\n\r\n"
    "2\r\n01:02:03,004 --> 01:02:04,000\r\nBye\r\n"
)
VTT = """WEBVTT - a title

STYLE
::cue { color: red }

NOTE nothing --- here

00:01.500 --> 00:03.000 align:start position:10%
<v Ann>Hello</v>, <00:00:02.000><c.loud>you</c>

end
1:02:03.004 --> 1:02:04.000
Bye
"""
CUES = [(1.5, 3.0, "Hello, you"), (3723.004, 3724.0, "Bye")]


@pytest.mark.parametrize(("name", "text"), [("a.srt", SRT), ("a.vtt", VTT)])
def test_a_file_is_read(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    cues = read_subtitles(name, str(tmp_path))
    assert [(round(start, 6), round(end, 6), words) for start, end, words in cues] == CUES


@pytest.mark.parametrize("text", ["", "no times", "\n\n\n", "-", "1\n\n2\n\n"])
def test_a_text_without_times_has_no_cues(text):
    assert parse_cues(text) == []


@pytest.mark.parametrize("time", ["soon", "1:2:3:4:x", "00:00:xx,000", "", "9" * 400 + ":00"])
def test_a_time_that_is_none_is_refused(time):
    with pytest.raises(ValueError, match="is not a time such as 00:01:02,500"):
        parse_cues(f"{time} --> 00:00:09,000\nHello")


@pytest.mark.parametrize(
    "times", ["00:00:03,000 --> 00:00:01,000", "00:00:01,000 --> 00:00:01,000", "nan --> 00:00:01,000"]
)
def test_a_cue_that_is_never_shown_is_left_out(times):
    assert parse_cues(f"{times}\nHello") == []


def test_the_number_of_lines_is_bounded_at_even_distances():
    cues = [(float(n), n + 0.5, str(n)) for n in range(10 * MAX_LINES)]
    lines = subtitle_text(cues).splitlines()
    assert len(lines) == MAX_LINES
    assert lines[:2] == ["[0.0s - 0.5s] 0", "[10.0s - 10.5s] 10"]


def test_the_length_of_a_line_is_bounded():
    line = subtitle_text([(0.0, 1.0, "x" * 10_000)])
    assert len(line) == len("[0.0s - 1.0s] ") + MAX_LINE_CHARS + 1


@pytest.mark.parametrize(
    ("text", "plain"),
    [("<i>a</i>", "a"), ("a < b", "a < b"), ("<", "<"), ("<<b>>", "<>"), ("a<b", "a<b"), ("  a \t b ", "a b")],
)
def test_tags_are_taken_out(text, plain):
    assert without_tags(text) == plain


def test_text_goes_before_the_last_words_of_the_last_user_message():
    def user(*parts):
        return Message(role="user", parts=parts)

    first, reply = user(Part(media=0), Part(text="One?")), Message(role="assistant", parts=(Part(text="1"),))
    last = user(Part(text="And"), Part(media=1), Part(text="two?"))
    expected = user(Part(text="And"), Part(media=1), Part(text="S"), Part(text="two?"))
    assert with_subtitles([first, reply, last], "S") == (first, reply, expected)
    assert with_subtitles([user(Part(media=0))], "S") == (user(Part(media=0), Part(text="S")),)
    assert with_subtitles([first], "") == (first,)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("../a.srt", "leads out of its folder"),
        ("/etc/passwd.srt", "leads out of its folder"),
        ("a.txt", "must be an .srt or .vtt file"),
        ("gone.srt", "cannot be read (No such file or directory)"),
        ("large.srt", f"is larger than {MAX_FILE_BYTES} bytes"),
        ("a\0.srt", "null"),
        ([[0, 1]], "subtitles.0: must be [start, end, text]"),
        ([[0, 1, 7]], "subtitles.0: must be [start, end, text]"),
        ([[2, 1, "x"]], "subtitles.0: a span must be finite with 0 <= start < end"),
    ],
)
def test_subtitles_that_cannot_be_used_are_refused(tmp_path, value, error):
    (tmp_path / "large.srt").write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (its text is compared)
        read_subtitles(value, str(tmp_path))
    assert error in str(caught.value)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.srt").write_text(SRT)
    (tmp_path / "inside" / "a.srt").symlink_to(tmp_path / "secret.srt")
    with pytest.raises(ValueError, match="leads out of its folder"):
        read_subtitles("a.srt", str(tmp_path / "inside"))


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.srt")
    (tmp_path / "folder.srt").mkdir()
    for name, why in (("pipe.srt", "not a regular file"), ("folder.srt", "Is a directory")):
        with pytest.raises(ValueError, match=f"'{name}' cannot be read .{why}.; check the path"):
            read_subtitles(name, str(tmp_path))
