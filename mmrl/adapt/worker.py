"""Runs a function in a process of its own, which is killed when a call takes too long.

It runs on that process's main thread. A thread of ours would not do: it cannot be stopped, and what guards itself with
signal.alarm (math-verify does, and with it many a user's reward) fails in one. The arguments are pickled, so that the
function has copies; the result comes back as JSON, so that nothing it made is ever unpickled here.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from numbers import Real
from typing import Any

from mmrl.resolve import import_object

START_S = 300.0
"""Importing the function's file may take longer than a call."""
MAX_REPLY_BYTES = 10_000_000
MAX_CHARS = 300
"""Of an error, and of any text in a result: enough to tell what it was."""
CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from mmrl.adapt.worker import serve
serve(int(sys.argv[2]))
"""


class CallError(Exception):
    """A call gave no value; the text says why, in one line."""


class CallTimeoutError(CallError):
    """A call took too long."""


class Worker:
    """A function, by import path, in its own process; started at the first call and again after it was killed.

    Args:
        timeout_s: of one call.
        fields: where `use` names a class, what it is made with; the instance is called.
    """

    def __init__(self, use: str, *, timeout_s: float, fields: Mapping[str, Any] | None = None) -> None:
        self.use, self.timeout_s, self.fields = use, timeout_s, dict(fields or {})
        self.process: subprocess.Popen[bytes] | None = None
        self._channel: Connection
        self._end: weakref.finalize[..., Worker]
        # One thread: calls wait for one another here, and their time runs only once they have the process.
        self._queue = ThreadPoolExecutor(max_workers=1)

    async def call(self, *arguments: Any, **named: Any) -> Any:
        """What the function returned, as plain numbers, texts, lists and dicts (`plain`). Raises CallError."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._queue, self._call, arguments, named)
        except asyncio.CancelledError:
            self._kill()  # a call that nobody waits for would hold up the exit
            raise

    def stop(self) -> None:
        """End the process; a later call starts another."""
        if self.process is not None:
            self._end()
            self.process = None

    def _kill(self) -> None:
        """Kill the process from any thread; the one that waits for its answer cleans up."""
        process = self.process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _call(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        try:
            request = pickle.dumps((arguments, named))
        except Exception as error:  # of a row's metadata, which may hold anything
            raise CallError(f"its arguments cannot be copied ({describe(error)})") from None
        if self.process is None:
            self._start()
        return self._ask(request, self.timeout_s)

    def _start(self) -> None:
        self._channel, theirs = Pipe()
        command = [sys.executable, "-c", CODE, json.dumps(sys.path), str(theirs.fileno())]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is ours to handle, and a kill takes what the function started with it
        )
        theirs.close()
        self._end = weakref.finalize(self, _end, self.process, self._channel)
        try:
            self._ask(pickle.dumps((self.use, self.fields)), START_S)
        except CallError as error:
            self.stop()
            raise CallError(f"cannot be loaded in its own process: {error}") from None

    def _ask(self, request: bytes, timeout_s: float) -> Any:
        try:
            self._channel.send_bytes(request)
            if not self._channel.poll(timeout_s):
                self.stop()
                raise CallTimeoutError(f"took longer than {timeout_s:g} s")
            reply = json.loads(self._channel.recv_bytes(MAX_REPLY_BYTES))
        except (EOFError, ConnectionError):
            process = self.process
            self.stop()
            raise CallError(f"its process ended with status {process.returncode if process else '?'}") from None
        except OSError:
            self.stop()
            raise CallError(f"its result has more than {MAX_REPLY_BYTES} bytes") from None
        if "error" in reply:
            raise CallError(reply["error"])
        return reply["value"]


def _end(process: subprocess.Popen[bytes], channel: Connection) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    channel.close()


def serve(descriptor: int) -> None:
    """The process's side: load the function, then answer calls until the other side is closed."""
    os.dup2(2, 1)  # what a function prints is no result of the command that is running
    sys.stdout = sys.stderr  # and is not held back in a buffer that a kill would lose
    channel = Connection(descriptor)
    function: Any = None

    def load(use: str, fields: Mapping[str, Any]) -> None:
        nonlocal function
        function = import_object(use)
        if inspect.isclass(function):
            function = function(**fields)

    def call(arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        result = function(*arguments, **named)
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result

    while True:
        try:
            request = channel.recv_bytes()
        except EOFError:
            return
        channel.send_bytes(_reply(load if function is None else call, request))


def _reply(run: Any, request: bytes) -> bytes:
    try:
        return json.dumps({"value": plain(run(*pickle.loads(request)))}).encode()
    except BaseException as error:  # sys.exit() in a user's function is a failed call like any other
        return json.dumps({"error": describe(error)}).encode()


async def _awaited(result: Any) -> Any:
    return await result


def plain(value: Any) -> Any:
    """Numbers, texts, lists and dicts as they are, arrays and tensors as lists, of anything else its kind as text."""
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < 1000 else "an int that is too large for a float"
    if isinstance(value, str):
        return value[:MAX_CHARS]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Real):
        return float(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return f"a {type(value).__name__}"


def describe(error: BaseException) -> str:
    """One line, never long."""
    text = f"{type(error).__name__}: {' '.join(str(error)[: 4 * MAX_CHARS].split())}"
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 3] + "..."
