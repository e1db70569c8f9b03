"""A typed function with a docstring is a tool: shown as transformers shows it, checked, and not trusted."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers.utils import get_json_schema

from mmrl.adapt.tools import FunctionTool, build_tool
from mmrl.errors import ConfigError
from mmrl.models.hermes import schema
from mmrl.models.space import SeenPixels
from mmrl.processors.image import Image
from mmrl.protocols import SpeaksPlaces, ToolError, ToolState
from mmrl.resolve import import_object
from mmrl.rollout.toolbox import Toolbox
from mmrl.types import ToolCall

FILE = Path(__file__).parent / "user_tools.py"
PROCESSOR = Image(factor=28, min_pixels=28 * 28, max_pixels=112 * 112)


def tool(name, **fields):
    return build_tool(f"{FILE}:{name}", fields, "episode.tools.0", PROCESSOR)


def use(name, arguments, media=(), typed=True, error_chars=300, **fields):
    """The observation of a call, or the text of its error."""
    call = ToolCall(name=name, arguments=arguments, typed=typed)
    state = ToolState(media=tuple(media), space=SeenPixels())
    try:
        return asyncio.run(Toolbox([tool(name, **fields)], error_chars=error_chars).run(call, state))
    except ToolError as error:
        return str(error)


def refusal(name, **fields):
    with pytest.raises(ConfigError) as caught:
        tool(name, **fields)
    return str(caught.value)


# --- what the model is shown


@pytest.mark.parametrize("name", ["multiply", "search", "draw", "order", "names"])
def test_the_schema_is_the_one_of_transformers(name):
    expected = get_json_schema(import_object(f"{FILE}:{name}"))["function"]
    shown = schema(tool(name))["function"]
    assert (shown["name"], shown["description"]) == (expected["name"], expected["description"])
    assert shown["parameters"] == {**expected["parameters"], "additionalProperties": False}
    json.dumps(shown)


def test_a_description_is_the_docstrings():
    shown = tool("search").arguments.model_json_schema()
    assert tool("search").description == "Search the encyclopaedia."
    assert shown["properties"]["query"] == {"type": "string", "description": "What to look for, in plain words."}
    assert shown["required"] == ["query"]


def test_the_state_is_not_shown():
    assert list(tool("rotate").arguments.model_json_schema()["properties"]) == ["image", "degrees"]
    assert tool("look").arguments.model_json_schema()["properties"] == {}


# --- calls


def test_a_function_is_called_with_what_the_model_wrote():
    assert use("multiply", {"a": 6, "b": 7}).text == "42"
    assert json.loads(use("search", {"query": "cats", "limit": 1}).text) == {"query": "cats", "results": ["result 0"]}
    assert len(json.loads(use("search", {"query": "cats"}).text)["results"]) == 3


def test_calls_as_text_are_read_by_the_schema():
    assert use("multiply", {"a": "6", "b": "7"}, typed=False).text == "42"
    assert use("search", {"query": "6", "limit": "1"}, typed=False).text.startswith('{"query": "6"')


def test_nested_types_arrive_as_they_are_declared():
    arguments = {"drink": "tea", "sizes": [1, 2], "extras": {"milk": 1}, "anything": [None, {"a": 1}], "maybe": "two"}
    assert use("order", arguments).text == "('tea', (1, 2), {'milk': 1.0}, [None, {'a': 1}], 'two')"


def test_parameters_may_have_names_that_pydantic_uses():
    assert use("names", {"schema": "s", "_hidden": 3, "model_dump": True}).text == "s 3 True"
    assert use("names", {"schema": "s"}).text == "s 0 False"


GOOD = {"drink": "tea", "sizes": [1, 2], "extras": {}, "anything": 1}


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("multiply", {"a": 1}, "b: Field required"),
        ("multiply", {"a": 1, "b": 2, "c": 3}, "c: Extra inputs are not permitted"),
        ("multiply", {"a": 1.5, "b": 2}, "a: Input should be a valid integer"),
        ("multiply", {"a": "1", "b": 2}, "a: Input should be a valid integer"),
        ("multiply", {"a": True, "b": 2}, "a: Input should be a valid integer"),
        ("multiply", {"a": None, "b": 2}, "a: Input should be a valid integer"),
        ("multiply", {"a": 10**40, "b": 2}, "a: Value error, a number must be finite and fit in 64 bits"),
        ("draw", {"color": "green", "size": [1, 2]}, "color: Input should be 'red' or 'blue'"),
        ("draw", {"color": "red", "size": "12"}, "size: Input should be a valid list"),
        ("draw", {"color": "red", "size": [1, "2"]}, "size.1: Input should be a valid integer"),
        (
            "draw",
            {"color": "red", "size": [1, 2], "scale": float("inf")},
            "scale: Value error, a number must be finite",
        ),
        (
            "draw",
            {"color": "red", "size": [1, 2], "scale": float("nan")},
            "scale: Value error, a number must be finite",
        ),
        ("draw", {"color": "red", "size": [1, 2], "scale": 10**400}, "scale: "),
        ("order", {**GOOD, "drink": "wine"}, "drink: Value error, must be one of tea, coffee"),
        ("order", {**GOOD, "sizes": [1]}, "sizes.1: Field required"),
        ("order", {**GOOD, "sizes": [1, 2, 3]}, "sizes: Tuple should have at most 2 items"),
        ("order", {**GOOD, "extras": {"milk": float("nan")}}, "extras: Value error, a number must be finite"),
        ("order", {**GOOD, "anything": [{"deep": [1e999]}]}, "anything: Value error, a number must be finite"),
        ("order", {**GOOD, "maybe": 1.5}, "maybe.int: Input should be a valid integer"),
        ("rotate", {"image": 0, "degrees": 90, "state": {}}, "state: Extra inputs are not permitted"),
    ],
)
def test_what_does_not_fit_the_hints_is_told_to_the_model(name, arguments, error):
    assert use(name, arguments).startswith(f"Error: {error}")


def test_a_function_is_given_the_state(picture):
    image = picture(0, 56, 56)
    turned = use("rotate", {"image": 0, "degrees": 180}, media=[image])
    np.testing.assert_array_equal(turned.media[0].original, image.original[::-1, ::-1])
    assert use("rotate", {"image": 1, "degrees": 180}, media=[image]) == "Error: image must be between 0 and 0"
    assert use("look", {}, media=[image]).media == (image,)


# --- what functions return


def test_an_image_is_shown_as_the_runs_processor_shows_images():
    drawn = use("draw", {"color": "blue", "size": [300, 200]})
    (media,) = drawn.media
    assert drawn.text == "300x200"
    assert media.kind == "image"
    assert media.original.shape == (200, 300, 3)
    assert media.frame.original == (300, 200)
    assert media.data.shape == (84, 112, 3)  # multiples of 28 within 112 * 112 pixels
    assert media.frame.seen == (112, 84)
    assert (media.data == [0, 0, 255]).all()
    assert media.label == "image from draw"


def test_equal_images_have_equal_keys():
    one, two = (use("draw", {"color": "blue", "size": [60, 60]}).media[0] for _ in range(2))
    other = use("draw", {"color": "red", "size": [60, 60]}).media[0]
    assert one.key == two.key != other.key


@pytest.mark.parametrize(
    ("what", "pixel"),
    [("picture", 0), ("clear", 255), ("cmyk", 255), ("deep", 255), ("float", 0)],
)
def test_images_of_any_mode_become_rgb(what, pixel):
    (media,) = use("give", {"what": what}).media
    assert media.original.shape == (56, 56, 3)
    assert (media.original[..., 2] == pixel).all()


def test_several_images_and_texts():
    both = use("give", {"what": "two"})
    assert [tuple(media.original[0, 0]) for media in both.media] == [(255, 0, 0), (0, 0, 255)]
    assert both.text == "and\ndone"


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("number", "3.5"),
        ("numpy", "0.5"),
        ("array", "[0, 1, 2]"),
        ("none", "null"),
        ("dict", '{"ü": [1, 2]}'),
        ("list", "[1, 2]"),
        ("empty", "[]"),
        ("long", "x" * 20_000),
        ("surrogate", "a?b"),
    ],
)
def test_anything_else_is_text(what, text):
    assert use("give", {"what": what}).text == text


def test_what_cannot_be_shown_is_an_error():
    assert use("give", {"what": "object"}) == "Error: give failed: TypeError: a object cannot be shown to a model"
    assert use("give", {"what": "set"}) == "Error: give failed: TypeError: a set cannot be shown to a model"
    narrow = use("give", {"what": "narrow"})
    assert "3000 x 1 is too narrow" in narrow


# --- functions that fail


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("missing", "fail failed: No such file or directory"),
        ("value", "fail failed: ValueError: no box in <path> nor in <path>, width/height is 1/2 (see <path>)"),
        ("exit", "fail failed: RuntimeError: SystemExit bye"),
        ("stop", "fail failed: RuntimeError: StopIteration"),
        ("told", "ask for less"),
    ],
)
def test_an_exception_is_told_to_the_model_without_paths(how, error):
    assert use("fail", {"how": how}) == f"Error: {error}"


def test_an_error_is_bounded():
    state = ToolState(media=(), space=SeenPixels())
    one = tool("fail")
    with pytest.raises(ToolError) as caught:
        asyncio.run(one.run(one.arguments(how="long"), state))
    assert len(str(caught.value)) < 1100
    assert len(use("fail", {"how": "long"}, error_chars=200)) == 200


@pytest.mark.parametrize("name", ["fail", "fail_async"])
def test_a_function_that_hangs_is_left_behind(name):
    assert use(name, {"how": "sleep"}, timeout_s=0.2) == f"Error: {name} failed: took longer than 0.2 s"


def test_an_async_function_that_raises():
    assert use("fail_async", {"how": "key"}) == "Error: fail_async failed: KeyError: 'key'"


def test_a_thread_that_hangs_does_not_keep_the_program_alive():
    code = f"""
import asyncio
from mmrl.adapt.tools import build_tool
from mmrl.protocols import ToolError
one = build_tool({f"{FILE}:fail"!r}, {{"timeout_s": 0.2}}, "t", None)
try:
    asyncio.run(one.run(one.arguments(how="sleep"), None))
except ToolError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "fail failed: took longer than 0.2 s\n"


def test_calls_run_at_once():
    one = tool("fail", timeout_s=60)
    state = ToolState(media=(), space=SeenPixels())

    async def many():
        hanging = asyncio.ensure_future(tool("fail", timeout_s=0.5).run(one.arguments(how="sleep"), state))
        fine = await asyncio.gather(*(one.run(one.arguments(how="no"), state) for _ in range(20)))
        assert not hanging.done()
        with pytest.raises(ToolError):
            await hanging
        return {observation.text for observation in fine}

    assert asyncio.run(many()) == {"fine"}


# --- configurations


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_hint", "Argument x is missing a type hint in function no_hint"),
        ("no_line", "the docstring has no description for the argument 'y'"),
        ("no_docstring", "Cannot generate JSON schema for no_docstring because it has no docstring!"),
        ("wrong_type", "parameter 'picture': a model cannot write a Image; use int, float,"),
        ("unknown_type", "its type hints cannot be read (name 'Nowhere' is not defined)"),
        ("starred", "parameter 'numbers' has no fixed name; write each argument out"),
    ],
)
def test_a_function_that_cannot_be_a_tool_is_refused_by_its_parameter(name, reason):
    text = refusal(name)
    assert text.startswith(f"episode.tools.0: {FILE}:{name}: ")
    assert reason in text


def test_an_unknown_key_is_refused():
    assert "episode.tools.0.timeout: " in refusal("multiply", timeout=3)
    assert refusal("multiply", timeout_s=0) == "episode.tools.0: timeout_s must be more than 0 seconds"


def test_a_dataclass_is_built_as_ever():
    zoom = build_tool("mmrl.tools.zoom:Zoom", {"min_side": 7}, "episode.tools.0", PROCESSOR)
    assert not isinstance(zoom, FunctionTool)
    assert zoom.min_side == 7
    with pytest.raises(ConfigError, match="is not a tool: it has no 'name'"):
        build_tool("mmrl.processors.image:Image", {}, "episode.tools.0", PROCESSOR)


def test_a_demonstrated_call_is_written_as_it_stands():
    assert not isinstance(tool("multiply"), SpeaksPlaces)
