"""Whatever a row holds, a reader reads it or refuses it in one line; nothing else ever comes out."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.formats import READERS, choose
from mmrl.data.readers.base import Place
from mmrl.data.rows import read_rows

PLACE = Place(root="/nowhere", where="f row 0", number=0)


def words(text):
    return st.sampled_from(text.split(" "))


TEXTS = words(
    " ? <image> <video><audio> \x00\x1b[31m \ud800 a.png ../../etc/passwd data:image/png;base64,AA data:, http://x "
    "[1,2,3,4] <answer> </answer><answer> <bbox><ref-object> real norm1 user assistant tool_call gpt image text "
    + "["
    * 2000
)
NAMES = words(
    "role content type text image from value bytes path url image_url span name arguments function tool_calls ref "
    "bbox bbox_type image_id ground_truth bbox_2d start"
)
ROLES = words("user assistant system tool tool_call tool_response human gpt")
LEAVES = st.sampled_from([None, True, -3, 0, 4, 10**400, 2.5, float("nan"), float("inf"), b"", b"\xff"]) | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=8
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": ROLES, "content": VALUES}, optional={"tool_calls": VALUES})
    | st.fixed_dictionaries({"from": ROLES, "value": VALUES}),
    max_size=3,
)
COLUMNS = words(
    "id messages prompt problem conversations images videos audios image video audio path data_type options answer "
    "solution reward_model objects tools completion boxes points spans track subtitles use_audio_in_video "
    "demonstration metadata ground_truth"
)
CHAT = [{"role": "user", "content": "?"}]
GOOD = {
    "native": {"messages": CHAT},
    "easyr1": {"problem": "?", "answer": "7"},
    "verl": {"prompt": CHAT, "reward_model": {"ground_truth": "7"}},
    "ms_swift": {"messages": CHAT, "solution": "7"},
    "llava": {"conversations": [{"from": "human", "value": "?"}]},
    "video_r1": {"problem": "?", "data_type": "image", "path": "a.png", "solution": "7"},
    "trl": {"prompt": CHAT, "solution": "7"},
}
CHANGES = st.dictionaries(COLUMNS, VALUES | MESSAGES, min_size=1, max_size=3)


def refused_or_read(name, row):
    """The sample, or what the reader says of a row that it refuses."""
    try:
        return READERS[name].read(row, PLACE)
    except (ValueError, RecursionError) as error:
        return str(error)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60)
@given(changes=CHANGES)
def test_a_reader_gives_a_sample_or_says_in_one_line_why_not(name, changes):
    read = refused_or_read(name, GOOD[name] | changes)
    if isinstance(read, str):
        assert len(read.splitlines()) == 1
        return
    shown = [part.media for message in read.messages for part in message.parts if part.media is not None]
    heard = [part.sound for message in read.messages for part in message.parts if part.sound is not None]
    assert sorted(shown + heard) == list(range(len(read.media)))
    assert len(read.id.splitlines()) == 1


@settings(max_examples=60)
@given(changes=CHANGES)
def test_clues_never_raise(changes):
    for name, reader in READERS.items():
        assert all(points > 0 for points in reader.clues(GOOD[name] | changes).values())


def test_a_row_without_changes_is_read():
    assert all(refused_or_read(name, row).id == "0" for name, row in GOOD.items())


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "line",
    [
        '{"answer": ' + "9" * 5000 + "}",
        '{"messages": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"messages": NaN, "prompt": Infinity}',
        '{"\\ud800": 1, "prompt": "\\ud800"}',
        '{"prompt": "\\u0000", "answer": "\\u0000"}',
        "\x00\x1b[2J",
        '{"a": 1}{"a": 2}',
    ],
)
def test_a_hostile_line_is_one_line_of_error_or_a_sample(tmp_path, name, line):
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"messages": [{"role": "user", "content": "?"}]})
    path.write_text(f"{line}\n{good}\n", encoding="utf-8")
    samples, errors = read_rows(path, format=name)
    assert len(samples) + len(errors) == 2
    assert all(len(error.splitlines()) == 1 for error in errors)


@pytest.mark.parametrize("value", ["a\nb", "x" * 201, ["a"], {"a": 1}, "\x1b[31m"])
def test_an_id_that_is_no_plain_text_is_refused(write_rows, value):
    (error,) = read_rows(write_rows({"id": value, "messages": [{"role": "user", "content": "?"}]}))[1]
    assert "row 0: id: must be plain text of at most 200 characters" in error


def test_a_file_of_many_columns_is_still_chosen_by_those_that_count():
    row = {f"column{number}": number for number in range(5000)} | {"conversations": []}
    assert choose([row], "f").reader.name == "llava"
