import json

import pytest

from mmrl.models.hermes import MAX_CALL_CHARS, Hermes
from mmrl.types import ToolCall

CALL = ToolCall(name="zoom", arguments={"box": [1, 2.5], "why": 'é "quoted" </answer>'})


def wrapped(body):
    return f"<tool_call>\n{body}\n</tool_call>"


def test_what_is_written_is_read_back():
    codec = Hermes()
    text = "thinking " + codec.format_call(CALL) + "\n" + codec.format_call(CALL)
    assert codec.parse(text) == ((CALL, CALL), None)


def test_text_without_a_call_has_none():
    assert Hermes().parse("the answer is </tool_call> 7") == ((), None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('<tool_call>{"name": "zoom"', "not closed"),
        (wrapped('{"name": "zoom", "arguments": {}'), "not valid JSON"),
        (wrapped('{"name": "zoom", "arguments": {"a": NaN}}'), "NaN is not a JSON number"),
        (wrapped('{"name": "zoom", "arguments": {"a": 1, "a": 2}}'), "given twice"),
        (wrapped('{"name": "zoom"}'), '"name" and "arguments"'),
        (wrapped('{"name": "zoom", "arguments": {}, "id": 1}'), '"name" and "arguments"'),
        (wrapped('{"name": 3, "arguments": {}}'), "must be a string"),
        (wrapped('{"name": "zoom", "arguments": []}'), "an object"),
        (wrapped("[1]"), "is an object"),
        (wrapped("[" * 3000), "not valid JSON"),
        (wrapped(json.dumps({"name": "z", "arguments": {"a": "x" * MAX_CALL_CHARS}})), "longer than"),
    ],
)
def test_a_malformed_call_gives_an_error_that_says_what_is_wrong(text, told):
    calls, error = Hermes().parse(text)
    assert calls == ()
    assert told in error


def test_one_malformed_call_spoils_the_turn():
    codec = Hermes()
    calls, error = codec.parse(codec.format_call(CALL) + wrapped("{"))
    assert calls == ()
    assert error is not None


def test_parsing_takes_linear_time_on_many_openings():
    calls, error = Hermes().parse("<tool_call>" * 200_000)
    assert calls == ()
    assert "not closed" in error
