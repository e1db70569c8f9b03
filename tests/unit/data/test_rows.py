"""Every row is either read as it stands or refused in one line that says which and why."""

import json

import pytest

from mmrl.data.rows import read_rows
from mmrl.errors import DataError
from mmrl.types import MediaRef, Message, Part, ToolCall

GOOD = {"messages": [{"role": "user", "content": "Which digit?"}], "answer": "7"}
SHOWN = {"messages": [{"role": "user", "content": "<image>Which?"}], "images": ["a.png"]}


def only_error(path):
    samples, errors = read_rows(path)
    assert samples == []
    (error,) = errors
    assert error.startswith(f"{path} row 0: ")
    assert "\n" not in error
    return error.removeprefix(f"{path} row 0: ")


def test_a_full_row_is_read_field_by_field(write_rows):
    row = {
        "id": "7",
        "messages": [
            {"role": "system", "content": "Look."},
            {"role": "user", "content": "A <image>and<image> B"},
        ],
        "images": ["a.png", "b/c.png"],
        "answer": "cat",
        "boxes": [[10, 20.5, 60, 80]],
        "tools": False,
        "metadata": {"level": 2},
    }
    path = write_rows(row)
    (sample,), errors = read_rows(path)
    assert errors == []
    assert sample.id == "7"
    assert sample.messages[0] == Message(role="system", parts=(Part(text="Look."),))
    assert sample.messages[1].parts == (
        Part(text="A "),
        Part(media=0),
        Part(text="and"),
        Part(media=1),
        Part(text=" B"),
    )
    assert [(ref.kind, ref.path, ref.root) for ref in sample.media] == [
        ("image", "a.png", str(path.parent)),
        ("image", "b/c.png", str(path.parent)),
    ]
    assert sample.gold.answer == "cat"
    assert sample.gold.boxes == ((10.0, 20.5, 60.0, 80.0),)
    assert sample.use_tools is False
    assert sample.metadata == {"level": 2}
    assert sample.where == f"{path} row 0"


def test_a_row_without_an_id_is_known_by_its_number(write_rows):
    samples, _ = read_rows(write_rows(GOOD, "", GOOD))
    assert [sample.id for sample in samples] == ["0", "2"]


@pytest.mark.parametrize(("written", "read"), [(7, "7"), (1.5, "1.5"), ("", ""), (None, None)])
def test_an_answer_may_be_a_number_or_text(write_rows, written, read):
    (sample,), _ = read_rows(write_rows({**GOOD, "answer": written}))
    assert sample.gold.answer == read


@pytest.mark.parametrize(("answer", "kind"), [(True, "bool"), (["7"], "list"), ({}, "dict")])
def test_any_other_answer_is_refused(write_rows, answer, kind):
    assert only_error(write_rows({**GOOD, "answer": answer})) == f"answer: must be text or a number, got {kind}"


@pytest.mark.parametrize(
    ("content", "images", "counts"),
    [
        ("<image>", [], "1 <image> placeholder(s) but 0 image(s)"),
        ("none", ["a.png"], "0 <image> placeholder(s) but 1 image(s)"),
        ("<image><image>", ["a.png"], "2 <image> placeholder(s) but 1 image(s)"),
    ],
)
def test_there_must_be_one_image_for_each_placeholder(write_rows, content, images, counts):
    row = {"messages": [{"role": "user", "content": content}], "images": images}
    assert counts in only_error(write_rows(row))


def test_a_placeholder_outside_a_user_message_is_refused(write_rows):
    row = {"messages": [{"role": "system", "content": "<image>"}], "images": ["a.png"]}
    assert only_error(write_rows(row)) == "messages.0: <image> may stand in user messages only"


FOUR = "boxes.1: gold box must be four numbers [x1, y1, x2, y2], got "
ORDER = "boxes.1: gold box must be finite with x1 < x2 and y1 < y2, got "


@pytest.mark.parametrize(
    ("box", "error"),
    [
        ('"1,2,3,4"', FOUR + "'1,2,3,4'"),
        ("[1, 2, 3]", FOUR + "[1, 2, 3]"),
        ("[1, 2, 3, 4, 5]", FOUR + "[1, 2, 3, 4, 5]"),
        ('[1, 2, "3", 4]', FOUR + "[1, 2, '3', 4]"),
        ("[false, 0, true, 1]", FOUR + "[False, 0, True, 1]"),
        ("null", FOUR + "None"),
        ("[NaN, 0, 1, 1]", ORDER + "[nan, 0, 1, 1]"),
        ("[0, 0, Infinity, 1]", ORDER + "[0, 0, inf, 1]"),
        ("[5, 0, 1, 1]", ORDER + "[5, 0, 1, 1]"),
        ("[0, 1, 1, 1]", ORDER + "[0, 1, 1, 1]"),
    ],
)
def test_a_gold_box_that_cannot_be_read_is_refused_and_shown(write_rows, box, error):
    line = json.dumps(SHOWN)[:-1] + f', "boxes": [[0, 0, 1, 1], {box}]}}'
    assert only_error(write_rows(line)) == error


def test_a_gold_box_too_large_for_a_float_is_refused(write_rows):
    error = only_error(write_rows({**SHOWN, "boxes": [[0, 0, 10**400, 1]]}))
    assert error.startswith("boxes.0: gold box must be finite")


def test_a_long_bad_box_is_shown_in_part(write_rows):
    assert len(only_error(write_rows({**SHOWN, "boxes": ["x" * 5000]}))) < 200


def test_an_unknown_key_is_refused_with_the_nearest_known_one(write_rows):
    assert only_error(write_rows({**GOOD, "anwser": "7"})) == "unknown key 'anwser'; did you mean 'answer'?"


def test_an_unknown_key_like_no_other_is_refused_plainly(write_rows):
    assert only_error(write_rows({**GOOD, "zzz": 1})) == "unknown key 'zzz'"


def test_an_id_may_be_used_once(write_rows):
    path = write_rows({**GOOD, "id": "a"}, {**GOOD, "id": "b"}, {**GOOD, "id": "a"})
    samples, errors = read_rows(path)
    assert [sample.id for sample in samples] == ["a", "b"]
    assert errors == [f"{path} row 2: id 'a' is used twice; give the row another"]


def test_the_id_of_a_refused_row_is_free(write_rows):
    samples, errors = read_rows(write_rows({**GOOD, "id": "a", "zzz": 1}, {**GOOD, "id": "a"}))
    assert [sample.id for sample in samples] == ["a"]
    assert len(errors) == 1


def test_a_torn_line_is_refused_with_the_place_of_the_tear(write_rows):
    assert "column" in only_error(write_rows(json.dumps(GOOD)[:-9]))


@pytest.mark.parametrize("line", ["[]", "7", '"text"', "null"])
def test_a_line_that_is_no_object_is_refused(write_rows, line):
    assert only_error(write_rows(line)) == "not a JSON object"


def test_nesting_too_deep_to_read_is_refused(write_rows):
    assert "recursion" in only_error(write_rows('{"metadata": ' + "[" * 100_000 + "]" * 100_000 + "}"))


def test_a_byte_order_mark_costs_no_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + (json.dumps(GOOD) + "\n").encode() * 2)
    samples, errors = read_rows(path)
    assert ([sample.id for sample in samples], errors) == (["0", "1"], [])


def test_bytes_that_are_no_text_spoil_their_own_row_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xff\xfe\x00\n" + json.dumps(GOOD).encode() + b"\n")
    samples, errors = read_rows(path)
    assert [sample.id for sample in samples] == ["1"]
    assert len(errors) == 1
    assert errors[0].startswith(f"{path} row 0: ")


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("messages", [], "messages: must hold at least one message"),
        ("messages", "hello", "messages: must be a list, got str"),
        ("messages", ["hello"], "messages.0: must be an object with 'role' and a text 'content'"),
        (
            "messages",
            [{"role": "user", "content": 3}],
            "messages.0: must be an object with 'role' and a text 'content'",
        ),
        (
            "messages",
            [{"role": "tool", "content": ""}],
            "messages.0.role: must be system, user or assistant, got 'tool'",
        ),
        ("images", "a.png", "images: must be a list, got str"),
        ("images", [""], "images: must be a list of paths"),
        ("images", [3], "images: must be a list of paths"),
        ("boxes", {}, "boxes: must be a list, got dict"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_its_key(write_rows, key, value, error):
    assert only_error(write_rows({**GOOD, key: value})) == error


def test_good_rows_around_bad_ones_are_kept_in_order(write_rows):
    path = write_rows({**GOOD, "id": "a"}, "{", {**GOOD, "id": "b"}, {**GOOD, "x": 1}, {**GOOD, "id": "c"})
    samples, errors = read_rows(path)
    assert [sample.id for sample in samples] == ["a", "b", "c"]
    assert [error.partition(": ")[0] for error in errors] == [f"{path} row 1", f"{path} row 3"]


def test_a_file_that_cannot_be_read_is_an_error_of_its_own(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl: cannot be read \(No such file"):
        read_rows(tmp_path / "nowhere.jsonl")


def test_a_demonstration_holds_text_and_calls(write_rows):
    call = {"name": "zoom", "arguments": {"bbox_2d": [0, 0, 9, 9]}}
    script = [
        {"role": "assistant", "content": "Closer.", "tool_calls": [call]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "assistant", "content": "<answer>7</answer>"},
    ]
    (sample,), _ = read_rows(write_rows({**GOOD, "demonstration": script}))
    parsed = ToolCall(name="zoom", arguments={"bbox_2d": [0, 0, 9, 9]})
    assert sample.demonstration == (
        Message(role="assistant", parts=(Part(text="Closer."),), tool_calls=(parsed,)),
        Message(role="assistant", tool_calls=(parsed,)),
        Message(role="assistant", parts=(Part(text="<answer>7</answer>"),)),
    )


@pytest.mark.parametrize("message", [{"role": "tool", "content": "x"}, {"content": "x"}, "x", None])
def test_a_demonstration_of_another_role_is_refused(write_rows, message):
    assert "must hold assistant messages only" in only_error(write_rows({**GOOD, "demonstration": [message]}))


@pytest.mark.parametrize("calls", ["zoom", ["zoom"], [{"name": "zoom"}], [{"name": 1, "arguments": {}}], None])
def test_a_demonstration_with_a_malformed_call_is_refused(write_rows, calls):
    script = [{"role": "assistant", "tool_calls": calls}]
    error = only_error(write_rows({**GOOD, "demonstration": script}))
    assert error == "demonstration: tool_calls must be objects with 'name' and 'arguments'"


def spoken(content, **columns):
    return {"messages": [{"role": "user", "content": content}], **columns}


def only_sample(path):
    (sample,), errors = read_rows(path)
    assert errors == []
    return sample


def test_media_of_all_kinds_are_in_the_order_of_their_placeholders(write_rows):
    row = spoken(
        "<audio>one<image>two<video><audio>",
        images=["a.png"],
        videos=[{"path": "v.mp4", "span": [1, 2.5]}],
        audios=["a.wav", {"path": "b.wav", "span": [0, 3]}],
    )
    path = write_rows(row)
    sample, root = only_sample(path), str(path.parent)
    assert sample.media == (
        MediaRef(kind="audio", path="a.wav", root=root),
        MediaRef(kind="image", path="a.png", root=root),
        MediaRef(kind="video", path="v.mp4", root=root, span=(1.0, 2.5)),
        MediaRef(kind="audio", path="b.wav", root=root, span=(0.0, 3.0)),
    )
    assert sample.messages[0].parts == (
        Part(media=0),
        Part(text="one"),
        Part(media=1),
        Part(text="two"),
        Part(media=2),
        Part(media=3),
    )


def test_a_video_may_be_given_as_pictures(write_rows):
    path = write_rows(spoken("<video>", videos=[["0.png", "1.png"]]))
    assert only_sample(path).media == (MediaRef(kind="video", pictures=("0.png", "1.png"), root=str(path.parent)),)


def test_the_nth_audio_is_heard_with_the_nth_video(write_rows):
    row = spoken(
        "<video>a<video><audio>",
        videos=["v.mp4", "w.mp4"],
        audios=["v.wav", "w.wav", "x.wav"],
        use_audio_in_video=True,
    )
    sample = only_sample(write_rows(row))
    assert [ref.path for ref in sample.media] == ["v.mp4", "v.wav", "w.mp4", "w.wav", "x.wav"]
    assert sample.messages[0].parts == (
        Part(media=0, sound=1),
        Part(text="a"),
        Part(media=2, sound=3),
        Part(media=4),
    )


def test_without_audios_a_video_is_heard_with_its_own_track_over_its_own_span(write_rows):
    row = spoken("<video>?", videos=[{"path": "v.mp4", "span": [1, 2]}], use_audio_in_video=True)
    path = write_rows(row)
    sample, root = only_sample(path), str(path.parent)
    assert sample.media == (
        MediaRef(kind="video", path="v.mp4", root=root, span=(1.0, 2.0)),
        MediaRef(kind="audio", path="v.mp4", root=root, span=(1.0, 2.0)),
    )
    assert sample.messages[0].parts == (Part(media=0, sound=1), Part(text="?"))


def test_gold_of_every_kind_is_read(write_rows):
    row = spoken(
        "<video>?",
        videos=["v.mp4"],
        points=[[1, 2.5]],
        spans=[[0, 1.5], [2, 3]],
        track=[[0.5, [0, 0, 9, 9]], [1, [1, 1, 8, 8]]],
    )
    gold = only_sample(write_rows(row)).gold
    assert gold.points == ((1.0, 2.5),)
    assert gold.spans == ((0.0, 1.5), (2.0, 3.0))
    assert gold.track == ((0.5, (0.0, 0.0, 9.0, 9.0)), (1.0, (1.0, 1.0, 8.0, 8.0)))


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"points": [[1]]}, "points.0: a gold point must be two numbers [x, y], got [1]"),
        ({"points": [[1, float("inf")]]}, "points.0: a gold point must be two numbers [x, y] that are finite"),
        ({"points": [[1, 10**400]]}, "points.0: a gold point must be two numbers [x, y] that are finite"),
        ({"spans": [[2, 1]]}, "spans.0: a span must be finite with 0 <= start < end, got [2, 1]"),
        ({"spans": [[-1, 1]]}, "spans.0: a span must be finite with 0 <= start < end, got [-1, 1]"),
        ({"spans": [[True, 2]]}, "spans.0: a span must be two numbers [start, end], got [True, 2]"),
        ({"track": [[1]]}, "track.0: must be [time, [x1, y1, x2, y2]], got [1]"),
        ({"track": [["1", [0, 0, 1, 1]]]}, "track.0: its time must be a number, got ['1']"),
        ({"track": [[1, [0, 0, 1]]]}, "track.0: gold box must be four numbers"),
        ({"videos": [{"path": "v.mp4", "span": [3, 3]}]}, "videos.0.span: a span must be finite with"),
        ({"videos": [[]]}, "videos.0: must name a video by a path, bytes or a data: URI, got []"),
        ({"images": [{"path": "a.png", "span": [0, 1]}]}, "images.0: an image has no span"),
        ({"use_audio_in_video": "yes"}, "use_audio_in_video: must be true or false, got 'yes'"),
        (
            {"videos": ["v.mp4", "w.mp4"], "audios": ["a.wav"], "use_audio_in_video": True},
            "use_audio_in_video: 2 video",
        ),
        ({"videos": [["0.png"]], "use_audio_in_video": True}, "videos.0: pictures have no sound of their own"),
        ({"metadata": [1]}, "metadata: must be an object, got list"),
        ({"subtitles": 3}, "subtitles: must be a path or a list of [start, end, text], got int"),
    ],
)
def test_a_column_that_cannot_be_read_is_named(write_rows, columns, error):
    line = json.dumps(spoken("?", answer="7", **columns))
    assert only_error(write_rows(line)).startswith(error)


@pytest.mark.parametrize("word", ["image", "video", "audio"])
def test_a_placeholder_as_literal_text_is_refused(write_rows, word):
    error = only_error(write_rows(spoken(f"What does <{word}> mean?")))
    assert error == f"1 <{word}> placeholder(s) but 0 {word}(s); there must be one for each"


def test_text_that_no_tokenizer_takes_is_refused(write_rows):
    assert "surrogates not allowed" in only_error(write_rows(spoken("\ud800")))
    call = {"name": "zoom", "arguments": {"label": "\ud800"}}
    demonstration = [{"role": "assistant", "tool_calls": [call]}]
    assert "surrogates not allowed" in only_error(write_rows(spoken("?", demonstration=demonstration)))


def test_subtitles_stand_before_the_question(write_rows, tmp_path):
    (tmp_path / "v.srt").write_text(
        "1\n00:00:01,000 --> 00:00:02,500\nHello\n\n2\n00:00:09,000 --> 00:00:10,000\nBye\n"
    )
    text = "[1.0s - 2.5s] Hello\n[9.0s - 10.0s] Bye\n"
    row = spoken("<video>Who?", videos=["v.mp4"], subtitles="v.srt")
    assert only_sample(write_rows(row)).messages[0].parts == (Part(media=0), Part(text=text), Part(text="Who?"))
    listed = spoken("<video>Who?", videos=["v.mp4"], subtitles=[[9, 10, "Bye"], [1, 2.5, "Hello"]])
    assert only_sample(write_rows(listed)).messages[0].parts == (Part(media=0), Part(text=text), Part(text="Who?"))


def test_a_clip_has_only_the_subtitles_that_are_shown_in_it(write_rows):
    row = spoken(
        "<video>Who?",
        videos=[{"path": "v.mp4", "span": [5, 20]}],
        subtitles=[[1, 2, "Hello"], [4, 6, "So"], [9, 10, "Bye"]],
    )
    assert only_sample(write_rows(row)).messages[0].parts[1].text == "[4.0s - 6.0s] So\n[9.0s - 10.0s] Bye\n"
