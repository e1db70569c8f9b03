"""Rows of other frameworks are read as they are published: each becomes exactly the sample that it should."""

import base64
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrl.data.rows import read_rows
from mmrl.errors import DataError
from mmrl.types import Gold, MediaRef, Message, Part, Sample, ToolCall

PNG = b"\x89PNG not looked at by readers"


@pytest.fixture
def read(tmp_path):
    """read(row, ..., suffix=, **options) is (samples, errors, line that tells the format) of a file of these rows."""

    def make(*rows, suffix="jsonl", **options):
        path = tmp_path / f"rows.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), path)
        elif suffix == "json":
            path.write_text(json.dumps(rows))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        told = []
        samples, errors = read_rows(path, tell=told.append, **options)
        return samples, [error.removeprefix(f"{path} ") for error in errors], told[0].removeprefix(f"{path}: ")

    return make


@pytest.fixture
def sample(tmp_path):
    """sample(*parts of the user's message, ...) is what is expected of row 0 of that file."""

    def make(*parts, media=(), suffix="jsonl", before=(), **fields):
        message = Message(
            role="user", parts=tuple(part if isinstance(part, Part) else Part(text=part) for part in parts)
        )
        return Sample(
            id="0",
            messages=(*before, message),
            media=tuple(MediaRef(**{"root": str(tmp_path)} | ref if "data" not in ref else ref) for ref in media),
            where=f"{tmp_path / f'rows.{suffix}'} row 0",
            **fields,
        )

    return make


def said(role, text, *calls):
    return Message(role=role, parts=(Part(text=text),) if text else (), tool_calls=calls)


EASYR1 = {"problem": "<image>How many?", "answer": "3", "images": ["a.png"], "source": "geo"}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_easyr1(read, sample, suffix):
    samples, errors, told = read(EASYR1, suffix=suffix)
    assert errors == []
    assert samples == [
        sample(
            Part(media=0),
            "How many?",
            media=[{"kind": "image", "path": "a.png"}],
            gold=Gold(answer="3"),
            metadata={"answer": "3", "source": "geo"},
            suffix=suffix,
        )
    ]
    assert told.startswith("read as easyr1 (")


def test_easyr1_with_pictures_in_the_parquet_file(read, sample):
    row = {
        "problem": "A<image>B<image>",
        "answer": "3",
        "images": [{"bytes": PNG, "path": None}, {"bytes": PNG + b"2"}],
    }
    samples, errors, _ = read(row, suffix="parquet")
    assert errors == []
    assert samples == [
        sample(
            "A",
            Part(media=0),
            "B",
            Part(media=1),
            media=[{"kind": "image", "data": PNG}, {"kind": "image", "data": PNG + b"2"}],
            gold=Gold(answer="3"),
            metadata={"answer": "3"},
            suffix="parquet",
        )
    ]


def test_easyr1_with_a_video(read):
    samples, errors, _ = read({"prompt": "<video>?", "answer": 4, "videos": ["v.mp4"]})
    assert errors == []
    assert [(ref.kind, ref.path) for ref in samples[0].media] == [("video", "v.mp4")]
    assert samples[0].gold.answer == "4"


VERL = {
    "data_source": "hiyouga/geometry3k",
    "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "<image>Find x."}],
    "images": [{"bytes": PNG, "path": "7.png"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "12"},
    "extra_info": {"split": "train", "index": 5},
}


def test_verl(read, sample):
    samples, errors, told = read(VERL, suffix="parquet")
    assert errors == []
    assert samples == [
        sample(
            Part(media=0),
            "Find x.",
            before=[said("system", "Think.")],
            media=[{"kind": "image", "data": PNG}],
            gold=Gold(answer="12"),
            metadata={key: VERL[key] for key in ("data_source", "ability", "reward_model", "extra_info")},
            suffix="parquet",
        )
    ]
    assert told.startswith("read as verl (")


def test_verl_with_a_structured_truth_and_paths_in_objects(read):
    row = {**VERL, "images": [{"image": "a.png"}], "reward_model": {"ground_truth": {"target": ["Bern", "Berne"]}}}
    (got,), errors, _ = read(row)
    assert errors == []
    assert got.media[0].path == "a.png"
    assert json.loads(got.gold.answer) == {"target": ["Bern", "Berne"]}


def test_verl_with_parts_as_content(read):
    parts = [{"type": "image", "image": "a.png"}, {"type": "video"}, {"type": "text", "text": "?"}]
    row = {**VERL, "prompt": [{"role": "user", "content": parts}], "images": None, "videos": [{"video": "v.mp4"}]}
    (got,), errors, _ = read(row)
    assert errors == []
    assert got.messages[0].parts == (Part(media=0), Part(media=1), Part(text="?"))
    assert [(ref.kind, ref.path) for ref in got.media] == [("image", "a.png"), ("video", "v.mp4")]


def test_swift_with_a_solution(read, sample):
    row = {
        "messages": [{"role": "user", "content": "<image><audio>Which?"}],
        "images": ["a.png"],
        "audios": ["a.wav"],
        "solution": "<answer> B </answer>",
        "level": 3,
    }
    samples, errors, told = read(row)
    assert errors == []
    assert samples == [
        sample(
            Part(media=0),
            Part(media=1),
            "Which?",
            media=[{"kind": "image", "path": "a.png"}, {"kind": "audio", "path": "a.wav"}],
            gold=Gold(answer="B"),
            metadata={"solution": "<answer> B </answer>", "level": 3},
        )
    ]
    assert told.startswith("read as ms_swift (")


def test_swift_where_the_last_reply_is_the_answer_and_media_have_no_placeholders(read, sample):
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A cat."},
    ]
    samples, errors, _ = read({"messages": messages, "videos": [["f0.png", "f1.png"]]})
    assert errors == []
    (got,) = samples
    assert got.messages == (
        Message(role="user", parts=(Part(media=0), Part(text="Hello"))),
        said("assistant", "Hi."),
        said("user", "What is it?"),
    )
    assert got.media[0].pictures == ("f0.png", "f1.png")
    assert got.gold.answer == "A cat."
    assert got.demonstration == (said("assistant", "<answer>A cat.</answer>"),)


def test_swift_grounding_in_pixels(read):
    row = {
        "messages": [
            {"role": "user", "content": "<image>Find <ref-object>."},
            {"role": "assistant", "content": "It is at <bbox>."},
        ],
        "images": ["a.png"],
        "objects": {"ref": ["the dog"], "bbox": [[1, 2, 30, 40], [5, 6]], "bbox_type": "real", "image_id": [0]},
    }
    (got,), errors, _ = read(row)
    assert errors == []
    assert got.messages[0].parts == (Part(media=0), Part(text="Find the dog."))
    assert got.gold == Gold(boxes=((1.0, 2.0, 30.0, 40.0),), points=((5.0, 6.0),))
    assert got.demonstration == ()  # a box is written in the numbers of a model, not of the row


def test_swift_agent_turns(read):
    call = {"name": "zoom", "arguments": {"bbox_2d": [0, 0, 9, 9]}}
    row = {
        "messages": [
            {"role": "user", "content": "<image>?"},
            {"role": "assistant", "content": "Closer."},
            {"role": "tool_call", "content": json.dumps(call)},
            {"role": "tool_response", "content": "a crop"},
            {"role": "assistant", "content": "<think>I see</think><answer>7</answer>"},
        ],
        "images": ["a.png"],
        "tools": json.dumps([{"type": "function", "function": {"name": "zoom"}}]),
    }
    (got,), errors, _ = read(row)
    assert errors == []
    assert len(got.messages) == 1
    assert got.gold.answer == "7"
    assert got.demonstration == (
        said("assistant", "Closer.", ToolCall(name="zoom", arguments=call["arguments"])),
        said("assistant", "<think>I see</think><answer>7</answer>"),
    )
    assert got.use_tools
    assert got.metadata["tools"] == row["tools"]


def test_a_row_with_an_empty_list_of_tools_is_asked_without_tools(read):
    row = {"messages": [{"role": "user", "content": "?"}], "solution": "7", "tools": "[]"}
    assert read(row)[0][0].use_tools is False


@pytest.mark.parametrize(
    ("objects", "error"),
    [
        ("x", "objects: must be an object with 'ref' and 'bbox', got str"),
        ({"bbox": [[1, 2, 3]]}, "objects.bbox.0: gold box must be four numbers"),
        ({"bbox": [[1, 2, 3, 4]], "image_id": [1]}, "objects.image_id: gold boxes are those of the first image"),
        ({"bbox": [[1, 2, 3, 4]], "bbox_type": "norm1000"}, "objects.bbox_type: must be real or norm1, got 'norm1000'"),
        ({"bbox": {}, "ref": [1]}, "objects.ref: must be a list of names"),
        ({"bbox": 3}, "objects.bbox: must be a list, got int"),
    ],
)
def test_swift_objects_that_cannot_be_read(read, objects, error):
    row = {"messages": [{"role": "user", "content": "<image>?"}], "images": ["a.png"], "objects": objects}
    _, errors, _ = read(row, format="ms_swift")
    assert errors[0].startswith(f"row 0: {error}")


LLAVA = {
    "id": "000000033471",
    "image": "coco/train2017/000000033471.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat colour is the bus?"},
        {"from": "gpt", "value": "White and red."},
    ],
}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_llava(read, sample, suffix):
    samples, errors, told = read(LLAVA, suffix=suffix)
    assert errors == []
    assert samples == [
        sample(
            Part(media=0),
            "\nWhat colour is the bus?",
            media=[{"kind": "image", "path": LLAVA["image"]}],
            gold=Gold(answer="White and red."),
            demonstration=(said("assistant", "<answer>White and red.</answer>"),),
            metadata={"id": LLAVA["id"]},
            suffix=suffix,
        )
    ]
    assert told == "read as llava (conversations, image)"


def test_llava_ids_repeat_in_published_files(read):
    samples, errors, _ = read(LLAVA, LLAVA)
    assert errors == []
    assert [sample.id for sample in samples] == ["0", "1"]


def test_llava_with_several_turns_and_a_video(read):
    row = {
        "video": "v.mp4",
        "conversations": [
            {"from": "human", "value": "<video>Who?"},
            {"from": "gpt", "value": "A man."},
            {"from": "human", "value": "Where?"},
            {"from": "gpt", "value": 4.5},
        ],
    }
    (got,), errors, _ = read(row)
    assert errors == []
    assert [message.role for message in got.messages] == ["user", "assistant", "user"]
    assert got.gold.answer == "4.5"


def test_vlm_r1_with_several_images_without_placeholders(read, sample):
    row = {
        "image": ["a.png", "b.png"],
        "conversations": [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "<answer>The first</answer>"}],
        "solution": [103.93, 299.99, 238.15, 477.4],
    }
    samples, errors, _ = read(row)
    assert errors == []
    assert samples == [
        sample(
            Part(media=0),
            Part(media=1),
            "Which?",
            media=[{"kind": "image", "path": "a.png"}, {"kind": "image", "path": "b.png"}],
            gold=Gold(answer="The first", boxes=((103.93, 299.99, 238.15, 477.4),)),
            demonstration=(said("assistant", "<answer>The first</answer>"),),
            metadata={"solution": row["solution"]},
        )
    ]


@pytest.mark.parametrize(
    ("solution", "boxes"),
    [
        ([[1, 2, 3, 4], [5, 6, 7, 8]], ((1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0))),
        ('<answer>{"bbox_2d": [1, 2, 3, 4], "label": "x"}</answer>', ((1.0, 2.0, 3.0, 4.0),)),
        ("[1, 2, 3, 4]", ((1.0, 2.0, 3.0, 4.0),)),
        ("a cat", ()),
    ],
)
def test_vlm_r1_boxes(read, solution, boxes):
    row = {"image": "a.png", "conversations": [{"from": "human", "value": "Where?"}], "solution": solution}
    (got,), errors, _ = read(row)
    assert errors == []
    assert got.gold == Gold(boxes=boxes, answer=None if boxes else "a cat")


VIDEO_R1 = {
    "problem_id": 2,
    "problem": "What does the man do?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. He runs", "B. He sits"],
    "solution": "<answer>B</answer>",
    "path": "./CLEVRER/video_0.mp4",
    "data_source": "CLEVRER",
}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_video_r1(read, sample, suffix):
    samples, errors, told = read(VIDEO_R1, suffix=suffix)
    assert errors == []
    kept = ("problem_id", "data_type", "problem_type", "solution", "data_source")
    assert samples == [
        sample(
            Part(media=0),
            "What does the man do?\nOptions:\nA. He runs\nB. He sits",
            media=[{"kind": "video", "path": "./CLEVRER/video_0.mp4"}],
            gold=Gold(answer="B"),
            metadata={key: VIDEO_R1[key] for key in kept},
            suffix=suffix,
        )
    ]
    assert told.startswith("read as video_r1 (")


def test_trl_with_a_chat_of_parts_and_bytes(read, sample):
    row = {
        "prompt": [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "How many?"}]}
        ],
        "image": {"bytes": PNG, "path": "a.png"},
        "solution": "<answer> 3 </answer>",
    }
    samples, errors, told = read(row, suffix="parquet")
    assert errors == []
    assert samples == [
        sample(
            Part(media=0),
            "How many?",
            media=[{"kind": "image", "data": PNG}],
            gold=Gold(answer="3"),
            metadata={"solution": "<answer> 3 </answer>"},
            suffix="parquet",
        )
    ]
    assert told.startswith("read as trl (")


def test_trl_with_a_text_prompt_puts_media_first(read, sample):
    samples, errors, told = read({"prompt": "How many?", "images": ["a.png", "b.png"], "solution": "$3$"})
    assert errors == []
    assert samples == [
        sample(
            Part(media=0),
            Part(media=1),
            "How many?",
            media=[{"kind": "image", "path": "a.png"}, {"kind": "image", "path": "b.png"}],
            gold=Gold(answer="$3$"),
            metadata={"solution": "$3$"},
        )
    ]
    assert told.startswith("read as trl (")


def test_trl_with_a_completion_and_a_data_uri(read):
    uri = "data:image/png;base64," + base64.b64encode(PNG).decode()
    parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "?"}]
    completion = [{"role": "assistant", "content": "Three"}]
    (got,), errors, _ = read({"prompt": [{"role": "user", "content": parts}], "completion": completion})
    assert errors == []
    assert got.media == (MediaRef(kind="image", data=PNG),)
    assert got.gold.answer == "Three"
    assert got.demonstration == (said("assistant", "<answer>Three</answer>"),)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": [{"role": "user", "content": "?"}]}, "native"),
        ({"messages": [{"role": "user", "content": "?"}], "anwser": "7"}, "native"),
        ({"messages": [{"role": "user", "content": "?"}], "answer": "7", "videos": []}, "native"),
        ({"messages": [{"role": "assistant", "content": "?"}], "images": ["a.png"]}, "ms_swift"),
        ({"messages": [{"role": "user", "content": "?"}], "solution": "7"}, "ms_swift"),
        ({"prompt": "<image>?", "answer": "7", "images": ["a.png"]}, "easyr1"),
        ({"prompt": "?", "answer": "7", "images": ["a.png"]}, "trl"),
        ({"prompt": "?", "image": "a.png", "answer": "7"}, "trl"),
        ({"problem": "?", "answer": "7"}, "easyr1"),
        ({"prompt": [{"role": "user", "content": "?"}], "answer": "7"}, "trl"),
    ],
)
def test_a_format_is_chosen_by_its_columns(read, row, name):
    assert read(row)[2].startswith(f"read as {name} (")


def test_a_column_may_first_come_in_a_later_row(read):
    rows = [
        {"messages": [{"role": "user", "content": "?"}]},
        {"messages": [{"role": "user", "content": "?"}], "solution": "7"},
    ]
    assert read(*rows)[2].startswith("read as ms_swift (")


def test_columns_that_fit_several_formats_are_an_error_that_lists_them(read):
    with pytest.raises(DataError) as caught:
        read({"prompt": "?", "answer": "7"})
    text = str(caught.value)
    assert "may be of several formats: easyr1 (prompt, answer); trl (prompt, answer); say which with 'format'" in text
    assert "\n" not in text


def test_a_forced_format_settles_it(read):
    samples, errors, told = read({"prompt": "?", "answer": "7"}, format="trl")
    assert (len(samples), errors, told) == (1, [], "read as trl (as configured)")


def test_columns_of_no_known_format_are_an_error_that_says_what_is_known(read):
    with pytest.raises(DataError) as caught:
        read({"question\n": "?", "reply": "7"})
    text = str(caught.value)
    assert r"the columns 'question\n', 'reply' are of no known format (native: messages; images" in text
    assert "\n" not in text


def test_a_format_that_is_not_known_is_an_error_with_the_nearest(read):
    with pytest.raises(DataError, match="no format 'easyr'; did you mean 'easyr1'"):
        read(EASYR1, format="easyr")


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({**EASYR1, "images": []}, "1 <image> placeholder(s) but 0 image(s)"),
        ({**EASYR1, "problem": "How many?"}, "0 <image> placeholder(s) but 1 image(s)"),
        ({**EASYR1, "problem": 3}, "problem: must be text, got int"),
        ({**EASYR1, "answer": True}, "answer: must be text or a number, got bool"),
        ({**EASYR1, "images": [3]}, "images.0: must name an image by a path, bytes or a data: URI, got 3"),
        ({**EASYR1, "images": [{"bytes": None, "path": None}]}, "images.0: names no file"),
        ({**EASYR1, "images": ["https://x.org/a.png"]}, "images.0: URLs are not followed"),
        ({**EASYR1, "images": ["file:///etc/passwd"]}, "images.0: URLs are not followed"),
        ({**EASYR1, "images": ["a\x1b[2J.png"]}, "images.0: must be a path without control characters"),
        ({**EASYR1, "images": ["a\nb.png"]}, "images.0: must be a path without control characters"),
        ({**EASYR1, "images": ["\ud800.png"]}, "images.0: must be a path without control characters"),
        ({**EASYR1, "images": ["data:image/png;base64,!!!"]}, "images.0: the data URI cannot be decoded"),
        ({**EASYR1, "images": ["data:image/png,abc"]}, "images.0: must be a data URI of the form"),
        (
            {**EASYR1, "images": ["data:text/html;base64,YQ=="]},
            "images.0: must hold an image, got a data URI of 'text/html'",
        ),
        ({**EASYR1, "images": ["data:image/png;base64,"]}, "images.0: the data URI cannot be decoded"),
        ({**EASYR1, "problem": "\ud800<image>"}, "'utf-8' codec can't encode"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_its_key(read, row, error):
    samples, errors, _ = read(row, format="easyr1")
    assert samples == []
    assert errors[0].startswith(f"row 0: {error}")
    assert "\n" not in errors[0]


def test_a_data_uri_over_the_cap_is_refused_before_it_is_decoded(read, monkeypatch):
    monkeypatch.setattr("mmrl.data.media.MAX_DATA_BYTES", 1000)
    monkeypatch.setattr("mmrl.data.media.base64.b64decode", lambda *a, **k: pytest.fail("decoded"))
    _, errors, _ = read({**EASYR1, "images": ["data:image/png;base64," + "A" * 4000]})
    assert errors == ["row 0: images.0: the data URI is larger than 1000 bytes; give the file by its path"]


def test_a_placeholder_in_a_question_without_media_is_refused(read):
    rows = [
        ({"prompt": "What does <image> mean in HTML?", "solution": "x"}, "1 <image> placeholder(s) but 0 image(s)"),
        (VIDEO_R1 | {"problem": "<video><video>?"}, "2 <video> placeholder(s) but 1 video(s)"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "text", "text": "<audio>"}]}], "solution": "x"},
            "messages.0.content.0: a placeholder may not stand in the text of a part",
        ),
    ]
    for row, error in rows:
        _, errors, _ = read(row)
        assert errors[0].startswith(f"row 0: {error}")


@pytest.mark.parametrize("content", [True, None, 3, {"text": "x"}])
def test_a_reply_that_is_no_text_is_refused(read, content):
    reply = [{"role": "assistant", "content": content}]
    _, errors, _ = read({"prompt": "?", "completion": reply})
    assert errors[0].startswith("row 0: completion.0.content: must be text or a list of parts")


def test_bad_rows_of_a_json_list_keep_their_numbers(read):
    samples, errors, _ = read(EASYR1, 7, EASYR1, {**EASYR1, "images": None}, suffix="json")
    assert [sample.id for sample in samples] == ["0", "2"]
    assert [error.partition(":")[0] for error in errors] == ["row 1", "row 3"]


def test_json_lines_may_be_called_json(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(EASYR1) + "\n" + json.dumps(EASYR1) + "\n")
    assert len(read_rows(path)[0]) == 2


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("rows.parquet", b"PAR1 but not really PAR1", "not a readable parquet file"),
        ("rows.parquet", b"", "not a readable parquet file"),
        ("rows.json", b"[{]", "not valid JSON"),
        ("rows.json", b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_file_that_is_broken_as_a_whole_is_one_error(tmp_path, name, content, error):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=error) as caught:
        read_rows(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_hub_id_without_the_package_says_what_to_do():
    with pytest.raises(DataError) as caught:
        read_rows("hiyouga/geometry3k:test")
    assert str(caught.value) == (
        "hiyouga/geometry3k:test: no such file; to read it from a hub, install the package 'datasets' "
        "(pip install datasets)"
    )
