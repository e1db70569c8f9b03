"""`mmrl doctor`: what is installed, what works, and how to mend the rest."""

from __future__ import annotations

import os
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from mmrl.versions import versions


def check(console: Console) -> int:
    """Print a table; returns the number of problems."""
    table = Table("", "found", "", title="mmrl doctor")
    problems = 0
    for name, found in versions().items():
        mend = "" if found else f"pip install {name}"
        problems += not found
        table.add_row(name, found or "missing", mend)
    for name, probe, mend in PROBES:
        try:
            table.add_row(name, probe(), "")
        except Exception as error:  # whatever is wrong with the installation is what is to be shown
            problems += 1
            table.add_row(name, f"fails: {type(error).__name__}: {error}", mend)
    console.print(table)
    console.print("Everything works." if not problems else f"{problems} problem(s); see the last column.")
    return problems


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads (no GPU is needed for the quickstart)"


def _image() -> str:
    """A JPEG that goes through the image processor."""
    import io

    from PIL import Image as PillowImage

    from mmrl.processors.image import Image
    from mmrl.types import MediaRef

    file = io.BytesIO()
    PillowImage.new("RGB", (64, 48), (200, 0, 0)).save(file, format="JPEG")
    width, height = Image().load(MediaRef(kind="image", data=file.getvalue())).frame.seen
    return f"decoded, shown at {width} x {height}"


def _model() -> str:
    """The model family's classes import; torch and torchvision fit together."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    from mmrl.models.load import FAMILIES

    return f"{', '.join(FAMILIES)} ({Qwen2_5_VLForConditionalGeneration.__name__})"


REINSTALL = "pip install --force-reinstall torch torchvision transformers"
PROBES: tuple[tuple[str, Callable[[], str], str], ...] = (
    ("device", _device, REINSTALL),
    ("images", _image, "pip install --force-reinstall pillow"),
    ("models", _model, REINSTALL),
)
