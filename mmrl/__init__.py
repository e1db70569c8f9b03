"""mmrl: train, evaluate and run multimodal reasoners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrl.scaling.reasoner import Reasoner

__version__ = "0.2.0"
__all__ = ["Reasoner"]


def __getattr__(name: str) -> Any:
    """`mmrl.Reasoner`, loaded when it is first asked for: importing mmrl alone imports no torch."""
    if name != "Reasoner":
        raise AttributeError(f"module 'mmrl' has no attribute {name!r}")
    from mmrl.scaling.reasoner import Reasoner

    return Reasoner
