"""The process in which media are decoded: a crash, a hang or a leak of a decoder ends here.

It speaks over the socket whose number it is started with (wire.py). A request brings the open file along; this process
opens none itself.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image as Pillow

from mmrl.processors import wire
from mmrl.processors.decoders import MODULES, read_frames, self_test
from mmrl.processors.probe import Limits, UnusableError, known_probe
from mmrl.processors.sampling import Sampling, frame_at, plan_look
from mmrl.processors.sound import read_sound

Reply = tuple[dict[str, Any], np.ndarray | None]
GRACE_S = 10
"""How long after the parent's limit a worker ends itself."""


def look(request: dict[str, Any], file: BinaryIO) -> Iterator[Reply]:
    """The frames of a look at a video, as the model sees them."""
    limits = Limits(**request["limits"])
    found = known_probe(file, limits)
    every = found.times()
    try:
        plan = plan_look(every, found.duration, found.size, request["span"], Sampling(**request["look"]))
    except ValueError as error:
        raise UnusableError(str(error)) from None
    times = [every[index] for index in plan.indices]
    yield {"size": found.size, "seen": plan.seen, "span": plan.span, "times": times}, None
    shown, pixels = -1.0, np.empty(0)
    for time, frame in read_frames(request["backend"], file, found, plan.indices, limits):
        if time != shown:
            shown, pixels = time, np.asarray(Pillow.fromarray(frame).resize(plan.seen, Pillow.Resampling.BICUBIC))
        yield {}, pixels


def stills(request: dict[str, Any], file: BinaryIO) -> Iterator[Reply]:
    """Frames at single moments, in their own size."""
    limits = Limits(**request["limits"])
    found = known_probe(file, limits)
    times = found.times()
    for moment in request["times"]:
        if not 0 <= moment <= found.duration:
            raise UnusableError(f"{moment:g} s is outside; it lasts {found.duration:g} s")
    indices = sorted({frame_at(times, moment) for moment in request["times"]})
    yield {"size": found.size, "times": [times[frame_at(times, moment)] for moment in request["times"]]}, None
    for time, frame in read_frames(request["backend"], file, found, indices, limits):
        yield {"time": time}, frame


def facts(request: dict[str, Any], file: BinaryIO) -> Iterator[Reply]:
    """What the probe found."""
    found = known_probe(file, Limits(**request["limits"]))
    names = ("container", "codec", "size", "rotation", "has_audio", "duration", "is_vfr")
    yield {**{name: getattr(found, name) for name in names}, "times": found.times()}, None


def sound(request: dict[str, Any], file: BinaryIO) -> Iterator[Reply]:
    """Mono samples at the file's own rate."""
    samples, rate, span = read_sound(file, request["span"], request["min_seconds"], request["max_seconds"])
    yield {"rate": rate, "span": span}, samples


def check(request: dict[str, Any], file: BinaryIO | None) -> Iterator[Reply]:
    """Whether a backend works here."""
    try:
        yield {"version": self_test(request["backend"])}, None
    except Exception as error:  # whatever is wrong with the installation is what is asked for
        raise UnusableError(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from None


JOBS: dict[str, Callable[..., Iterator[Reply]]] = {
    "look": look,
    "stills": stills,
    "facts": facts,
    "sound": sound,
    "check": check,
}


def answer(connection: socket.socket, request: dict[str, Any], file: BinaryIO | None) -> None:
    """Do a job and send its replies, then "done" or "error"."""
    try:
        for header, payload in JOBS[request["job"]](request, file):
            wire.send(connection, header, b"" if payload is None else np.ascontiguousarray(payload).data.cast("B"))
    except UnusableError as error:
        wire.send(connection, {"error": str(error)})
    except OSError as error:
        wire.send(connection, {"error": f"cannot be read ({error})"})
    except Exception as error:  # decoders raise anything on broken bytes
        wire.send(connection, {"error": f"cannot be decoded ({type(error).__name__}: {error})"})
    else:
        wire.send(connection, {"done": True})


def main(fd: int) -> None:
    """Serve until the parent closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's business
    connection = socket.socket(fileno=fd)
    wire.send(connection, {"ready": os.getpid()})
    while True:
        request, _, file = wire.receive(connection)
        if "backend" in request:  # torchcodec takes seconds, which do not count against the limit
            with contextlib.suppress(Exception):  # the job will say what is wrong with it
                importlib.import_module(MODULES[request["backend"]])
        wire.send(connection, {"started": True})
        signal.alarm(int(request["timeout_s"]) + GRACE_S)  # an orphan whose decoder hangs ends by itself
        answer(connection, request, file)
        signal.alarm(0)
        if file is not None:
            file.close()


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has gone
        main(int(sys.argv[1]))
