"""Finds and builds what a configuration names: "package.module:Name" or "path/to/file.py:Name"."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mmrl.errors import ConfigError


def import_object(name: str) -> Any:
    """The object that `name` points at; ConfigError says which half of the name is wrong."""
    module_name, colon, attribute = name.rpartition(":")
    if not colon or not attribute or not all(module_name.split(".")):
        raise ConfigError(f"{name!r}: write 'package.module:Name' or 'path/to/file.py:Name'")
    module = _from_file(Path(module_name)) if module_name.endswith(".py") else _from_package(module_name)
    if not hasattr(module, attribute):
        raise ConfigError(f"{name!r}: {module_name} has no {attribute!r}{suggest(attribute, vars(module))}")
    return getattr(module, attribute)


def build(use: str, fields: Mapping[str, Any], where: str = "") -> Any:
    """An instance of the dataclass that `use` names, its fields checked; `where` is the config key, for errors."""
    target = import_object(use)
    if not dataclasses.is_dataclass(target):
        raise ConfigError(f"{where}: {use} is not a dataclass; what a config names must be one")
    return construct(target, use, fields, where)


def construct(target: Any, use: str, fields: Mapping[str, Any], where: str) -> Any:
    """An instance of the dataclass `target`, its fields checked."""
    known = [field.name for field in dataclasses.fields(target)]
    for key in fields:
        if key not in known:
            raise ConfigError(f"{where}.{key}: {use} has no such field{suggest(key, known)}")
    try:
        return TypeAdapter(target).validate_python(dict(fields))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{'.'.join(filter(None, (where, place)))}: {message}") from None


def suggest(word: str, known: Any) -> str:
    """'; did you mean ...?' or nothing."""
    close = difflib.get_close_matches(word, [str(k) for k in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _from_package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"module {name!r} is not installed; check the spelling") from None
        raise


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file (looked in {Path.cwd()})")
    name = f"mmrl_user_{path.resolve().stem}_{abs(hash(path.resolve()))}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
