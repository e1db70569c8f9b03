"""Functions as users write them for chat templates and for TRL; only the last few know of mmrl."""

import asyncio
import sys
import time
from typing import Any, Literal

import numpy as np
from PIL import Image

from mmrl.protocols import Observation, ToolError, ToolState


def multiply(a: int, b: int) -> int:
    """
    Multiplies two integers.

    Args:
        a: The first integer.
        b: The second integer.

    Returns:
        The product of the two integers.
    """
    return a * b


async def search(query: str, limit: int = 3) -> dict:
    """Search the encyclopaedia.

    Args:
        query: What to look for,
            in plain words.
        limit: How many results.
    """
    await asyncio.sleep(0)
    return {"query": query, "results": [f"result {n}" for n in range(limit)]}


def draw(color: Literal["red", "blue"], size: list[int], scale: float = 1.0, note: str | None = None):
    """Draw a picture.

    Args:
        color: Its colour.
        size: Width and height in pixels.
        scale: How much larger.
        note: What to write below.
    """
    width, height = (int(side * scale) for side in size)
    picture = Image.new("RGB", (width, height), color)
    return [{"type": "image", "image": picture}, {"type": "text", "text": note or f"{width}x{height}"}]


def order(drink: str, sizes: tuple[int, int], extras: dict[str, float], anything: Any, maybe: int | str = 1) -> str:
    """Order a drink.

    Args:
        drink: Which. (choices: ["tea", "coffee"])
        sizes: Two.
        extras: By name.
        anything: Whatever.
        maybe: A number or a name.
    """
    return repr((drink, sizes, extras, anything, maybe))


def names(schema: str, _hidden: int = 0, model_dump: bool = False) -> str:
    """Parameters with names that pydantic uses itself.

    Args:
        schema: One.
        _hidden: Two.
        model_dump: Three.
    """
    return f"{schema} {_hidden} {model_dump}"


def rotate(state: ToolState, image: int, degrees: float):
    """Turn an image round.

    Args:
        image: Which one, from 0.
        degrees: By how much.
    """
    if image >= len(state.media):
        raise ToolError(f"image must be between 0 and {len(state.media) - 1}")
    return Image.fromarray(state.media[image].original).rotate(degrees)


def look(state: ToolState) -> Observation:
    """Look again."""
    return Observation(text="again", media=state.media[:1])


def give(what: str):
    """Gives something.

    Args:
        what: What to give.
    """
    return {
        "picture": Image.new("RGB", (56, 56), "red"),
        "clear": Image.new("RGBA", (56, 56), (255, 0, 0, 0)),
        "cmyk": Image.new("CMYK", (56, 56), (0, 0, 0, 0)),
        "deep": Image.fromarray(np.full((56, 56), 65535, dtype=np.uint16)),
        "float": Image.fromarray(np.full((56, 56), 0.5, dtype=np.float32)),
        "narrow": Image.new("RGB", (3000, 1)),
        "two": [Image.new("RGB", (56, 56), "red"), "and", Image.new("RGB", (56, 56), "blue"), "done"],
        "number": 3.5,
        "numpy": np.float32(0.5),
        "array": np.arange(3),
        "none": None,
        "dict": {"ü": [1, 2]},
        "list": [1, 2],
        "empty": [],
        "long": "x" * 1_000_000,
        "surrogate": "a\ud800b",
        "object": object(),
        "set": {1},
    }[what]


def fail(how: str) -> str:
    """Fails.

    Args:
        how: In what way.
    """
    if how == "missing":
        open("/home/somebody/gold/answers 7.json")  # noqa: SIM115
    if how == "value":
        raise ValueError(
            "no box in '/home/somebody/my gold/7.png' nor in data/gold/8.png, width/height is 1/2 (see /etc/passwd)"
        )
    if how == "exit":
        sys.exit("bye")
    if how == "stop":
        raise StopIteration
    if how == "long":
        raise RuntimeError("x" * 1_000_000)
    if how == "sleep":
        time.sleep(600)
    if how == "told":
        raise ToolError("ask for less")
    return "fine"


async def fail_async(how: str) -> str:
    """Fails.

    Args:
        how: In what way.
    """
    if how == "sleep":
        await asyncio.sleep(600)
    raise KeyError(how)


def no_hint(x, y: int):
    """Adds.

    Args:
        x: One.
        y: Two.
    """


def no_line(x: int, y: int):
    """Adds.

    Args:
        x: One.
    """


def no_docstring(x: int): ...


def wrong_type(picture: Image.Image):
    """Shows.

    Args:
        picture: Which.
    """


def unknown_type(x: "Nowhere"):  # noqa: F821
    """Shows.

    Args:
        x: What.
    """


def starred(*numbers: int):
    """Adds.

    Args:
        numbers: Which.
    """
