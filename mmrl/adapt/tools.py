"""Any typed Python function with a docstring as a tool.

The model is shown the schema that transformers makes of the function for chat templates (as TRL does), and what it
writes is checked against the type hints. A parameter annotated `ToolState` is not shown: it is given the state of the
episode.

The function returns text, a PIL image, a list of images, texts and content parts ({"type": "image", "image": ...},
{"type": "text", "text": ...}), or an Observation; of anything else the model is shown the JSON. Images are shown before
text, at the size that the run's image processor gives them. A ToolError is told to the model as it is; of another
exception it is told the text, without paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import io
import json
import math
import re
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Union, cast, get_args, get_origin, get_type_hints

from PIL.Image import Image
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    create_model,
)
from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException, get_json_schema

from mmrl.config import Plugin
from mmrl.errors import ConfigError, MediaError
from mmrl.models.fitting import fitted
from mmrl.protocols import ModelFamily, Observation, Processor, Tool, ToolError, ToolState
from mmrl.resolve import build, construct, import_object
from mmrl.types import Media, MediaRef

MAX_CHARS = 20_000
"""Of a text that a function returns; the rest is cut off."""
MAX_ERROR_CHARS = 1000
STRICT: Mapping[Any, Any] = {int: StrictInt, float: StrictFloat, str: StrictStr, bool: StrictBool}
PATH = re.compile(
    r"""(['"])(?:~|[A-Za-z]:)?[\\/][^'"\n]*\1"""  # quoted: may hold spaces
    r"""|(?<![\w.<)\]])(?:~|[A-Za-z]:)?[\\/][^\s'"<>,;:()\[\]]+"""  # absolute
    r"""|(?:[\w.-]+[\\/])+[\w-]+\.\w+"""  # relative, to a file
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Keys of a function's entry."""

    timeout_s: float = 30.0
    """Of one call."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < math.inf:
            raise ValueError("timeout_s must be more than 0 seconds")


class Arguments(BaseModel):
    """Base of the argument models. What a model is shown is the schema of the function."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    shown: ClassVar[dict[str, Any]]

    @classmethod
    def model_json_schema(cls, *arguments: Any, **named: Any) -> dict[str, Any]:
        return cls.shown


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTool:
    """A function as a tool. One that is not async runs in a thread, and may be called from several at once."""

    function: Callable[..., Any]
    name: str
    description: str
    arguments: type[Arguments]
    state: tuple[str, ...]
    """Parameters that are given the episode's state."""
    image: Processor
    """Decides how an image that the function returns is shown."""
    timeout_s: float

    async def run(self, arguments: Arguments, state: ToolState) -> Observation:
        """ToolError for anything that the function raises."""
        named = {str(field.alias): getattr(arguments, name) for name, field in type(arguments).model_fields.items()}
        named |= dict.fromkeys(self.state, state)
        limit = asyncio.timeout(self.timeout_s)
        try:
            async with limit:
                if inspect.iscoroutinefunction(self.function):
                    return self._observation(await self.function(**named))
                return await in_thread(lambda: self._observation(self.function(**named)))
        except ToolError:
            raise
        except Exception as error:  # a user's function may raise anything: it is the answer to this call
            reason = f"took longer than {self.timeout_s:g} s" if limit.expired() else words(error)
            raise ToolError(f"{self.name} failed: {reason}") from error

    def _observation(self, result: Any) -> Observation:
        if isinstance(result, Observation):
            return result
        items = result if isinstance(result, list) and result and all(map(is_part, result)) else [result]
        media: list[Media] = []
        texts: list[str] = []
        for item in items:
            content = item[item["type"]] if is_part(item) and isinstance(item, dict) else item
            if isinstance(content, Image):
                media.append(self._media(content))
            else:
                texts.append(
                    content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=_plain)
                )
        # A lone surrogate is no text that a tokenizer takes.
        text = "\n".join(texts)[:MAX_CHARS].encode("utf-8", "replace").decode()
        return Observation(text=text, media=tuple(media))

    def _media(self, picture: Image) -> Media:
        file = io.BytesIO()
        if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
            picture = picture.convert("RGB")
        picture.save(file, "PNG", compress_level=1)
        media = self.image.load(MediaRef(kind="image", data=file.getvalue()))
        return replace(media, label=f"image from {self.name}")


def build_tools(plugins: Sequence[Plugin], image: Processor, family: ModelFamily) -> tuple[Tool, ...]:
    """The `episode.tools` of a configuration, which show pictures at sizes that the family's tower takes."""
    return tuple(
        fitted(build_tool(plugin.use, plugin.fields, f"episode.tools.{number}", image), plugin.fields, family)
        for number, plugin in enumerate(plugins)
    )


def build_tool(use: str, fields: Mapping[str, Any], where: str, image: Processor) -> Tool:
    """The tool that a configuration names: a dataclass of our own kind, or a function.

    Args:
        image: how images that a function returns are shown.
    """
    target = import_object(use)
    if inspect.isroutine(target) and not is_dataclass(target):
        options = construct(Options, use, fields, where)
        return adapt_tool(target, f"{where}: {use}", image, options.timeout_s)
    tool: Tool = build(use, fields, where)
    for needed in ("name", "description", "arguments", "run"):
        if not hasattr(tool, needed):
            raise ConfigError(f"{where}: {use} is not a tool: it has no {needed!r}")
    return tool


def adapt_tool(function: Callable[..., Any], place: str, image: Processor, timeout_s: float) -> FunctionTool:
    """A function as a tool; ConfigError names the parameter that lacks a type hint or a line in the docstring."""
    try:
        hints = get_type_hints(function)
        parameters = inspect.signature(function).parameters
    except (NameError, TypeError, ValueError) as error:
        raise ConfigError(f"{place}: its type hints cannot be read ({error})") from None
    state = tuple(name for name in parameters if hints.get(name) is ToolState)
    asked = {name: parameter for name, parameter in parameters.items() if name not in state}
    for name, parameter in asked.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(f"{place}: parameter {name!r} has no fixed name; write each argument out")
    schema = _schema(function, asked, hints, place)
    return FunctionTool(
        function=function,
        name=schema["name"],
        description=schema["description"],
        arguments=_arguments(schema, asked, hints, place),
        state=state,
        image=image,
        timeout_s=timeout_s,
    )


def _schema(
    function: Callable[..., Any], asked: Mapping[str, inspect.Parameter], hints: Mapping[str, Any], place: str
) -> dict[str, Any]:
    """Name, description and parameters, read by transformers from a stand-in that has only the parameters asked."""

    def stand_in() -> None: ...

    stand_in.__name__, stand_in.__doc__ = function.__name__, inspect.getdoc(function)
    stand_in.__annotations__ = {name: hints[name] for name in asked if name in hints}
    stand_in.__signature__ = inspect.Signature(list(asked.values()))  # type: ignore[attr-defined]
    try:
        return get_json_schema(stand_in)["function"]
    except (TypeHintParsingException, DocstringParsingException, ValueError) as error:
        raise ConfigError(f"{place}: {' '.join(str(part) for part in error.args)}") from None


def _arguments(
    schema: Mapping[str, Any], asked: Mapping[str, inspect.Parameter], hints: Mapping[str, Any], place: str
) -> type[Arguments]:
    """The model that checks what a model wrote."""
    fields: dict[str, Any] = {}
    for name, parameter in asked.items():
        try:
            kind: Any = checked(hints[name])
        except TypeError as error:
            raise ConfigError(f"{place}: parameter {name!r}: {error}") from None
        checks = [AfterValidator(_finite)]
        if choices := schema["parameters"]["properties"][name].get("enum"):
            checks.append(AfterValidator(_one_of(choices)))
        default = ... if parameter.default is parameter.empty else parameter.default
        # Some names are pydantic's own: the field has another, and the alias is what counts.
        field = f"argument_{name}" if name.startswith("_") or hasattr(Arguments, name) else name
        fields[field] = (Annotated[kind, *checks], Field(default, alias=name))
    model = create_model(schema["name"], __base__=Arguments, **fields)
    model.shown = {**schema["parameters"], "additionalProperties": False}
    return model


def checked(hint: Any) -> Any:
    """A type hint as pydantic is to check it, without conversions. TypeError for what JSON cannot hold."""
    if hint in STRICT:
        return STRICT[hint]
    if hint in (Any, list, tuple, dict):
        return hint
    origin, inner = get_origin(hint), get_args(hint)
    if hint is type(None) or origin is Literal:
        return hint
    if origin in (Union, types.UnionType):
        return Union[tuple(checked(one) for one in inner)]  # noqa: UP007 (of a computed tuple)
    if origin in (list, tuple, dict):
        return origin[tuple(checked(one) for one in inner)]
    name = getattr(hint, "__name__", str(hint))
    raise TypeError(f"a model cannot write a {name}; use int, float, str, bool, Literal, list, tuple or dict")


def _finite(value: Any) -> Any:
    """Refuses numbers that are not finite, or of hundreds of digits, however deep they lie."""
    if isinstance(value, (list, tuple)):
        for item in value:
            _finite(item)
    elif isinstance(value, dict):
        _finite(list(value.values()))
    elif isinstance(value, (int, float)) and not -(2.0**63) <= value < 2.0**63:
        raise ValueError("a number must be finite and fit in 64 bits")
    return value


def _one_of(choices: list[Any]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(map(str, choices))}")
        return value

    return check


def is_part(item: Any) -> bool:
    """An image, a text, or a content part that holds one."""
    if isinstance(item, dict):
        return item.get("type") in ("image", "text") and isinstance(item.get(item["type"]), (Image, str))
    return isinstance(item, (Image, str))


def words(error: Exception) -> str:
    """What a model may read of an exception: its text, bounded and without paths."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MediaError):
        return str(error)
    text = " ".join(str(error)[:MAX_ERROR_CHARS].split())
    return f"{type(error).__name__}: {PATH.sub('<path>', text)}"


async def in_thread(function: Callable[[], Any]) -> Any:
    """Its result. The thread does not keep the program alive: a call that never ends is left behind."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if not future.done():
            future.set_result(result) if error is None else future.set_exception(error)

    def work() -> None:
        result: Any = None
        failure: Exception | None = None
        try:
            result = function()
        except BaseException as error:  # sys.exit() ends the call, not the run
            usual = isinstance(error, Exception) and not isinstance(error, StopIteration)
            failure = cast(Exception, error) if usual else RuntimeError(f"{type(error).__name__} {error}")
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True).start()
    return await future


def _plain(value: Any) -> Any:
    """For JSON: arrays, tensors and their scalars."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be shown to a model")
