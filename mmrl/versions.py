"""What is installed."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement


def versions() -> dict[str, str | None]:
    """Versions of Python, mmrl and everything that mmrl needs, None for what is missing; and of vLLM where it is."""
    needed = [Requirement(line).name for line in requires("mmrl") or [] if "extra ==" not in line]
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in ("mmrl", *sorted(needed))},
        **({"vllm": found} if (found := _version("vllm")) else {}),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
