"""`mmrl doctor`: what is installed, what works, and how to mend the rest."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

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
    for name, probe, mend in OPTIONAL:
        try:
            table.add_row(name, probe(), "")
        except Exception as error:
            table.add_row(name, f"not usable: {error}", f"only if wanted: {mend}")
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


def _backend(name: str) -> str:
    """A video backend reads a rotated clip, in a process of its own."""
    from mmrl.processors.video import check_backend

    return f"{check_backend(name)} reads the self-test clip"


def _audio() -> str:
    """A second of silence at 48 kHz that goes through the audio processor."""
    import io

    import numpy as np
    import soundfile

    from mmrl.processors.audio import Audio
    from mmrl.types import MediaRef

    file = io.BytesIO()
    soundfile.write(file, np.zeros(48_000), 48_000, format="WAV")
    return f"decoded, {len(Audio().load(MediaRef(kind='audio', data=file.getvalue())).data)} samples a second"


def _model() -> str:
    """The model family's classes import; torch and torchvision fit together."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    from mmrl.models.load import FAMILIES

    return f"{', '.join(FAMILIES)} ({Qwen2_5_VLForConditionalGeneration.__name__})"


def _vllm() -> str:
    """Imports, and what of it can run on this machine."""
    import torch
    import vllm
    from vllm.distributed.ec_transfer.ec_connector import example_connector  # noqa: F401 (what reads our features)

    if torch.cuda.is_available():
        return f"{vllm.__version__}, in process and by servers; mmrl's tests of it ran without a GPU only"
    return f"{vllm.__version__}, in process and by servers; graphs and sleep need a GPU"


REINSTALL = "pip install --force-reinstall torch torchvision transformers"
PROBES: tuple[tuple[str, Callable[[], str], str], ...] = (
    ("device", _device, REINSTALL),
    ("images", _image, "pip install --force-reinstall pillow"),
    ("videos", partial(_backend, "pyav"), "pip install --force-reinstall av"),
    ("audio", _audio, "pip install --force-reinstall soundfile torchaudio"),
    ("models", _model, REINSTALL),
)
OPTIONAL: tuple[tuple[str, Callable[[], str], str], ...] = (
    ("videos by torchcodec", partial(_backend, "torchcodec"), "pip install torchcodec; apt-get install ffmpeg"),
    ("rollouts by vLLM", _vllm, r"pip install 'mmrl\[vllm]'; without a GPU as in the Makefile"),
    ("videos by decord", partial(_backend, "decord"), "pip install decord"),
)
"""What may be chosen instead of what works already."""
