"""One vLLM server as the trainer sees it: brought up, given the weights, brought up again."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmrl.config import ServersSection
from mmrl.errors import MmrlError
from mmrl.rollout.vllm_client import INTERVAL_S, Client, ServerDownError
from mmrl.rollout.vllm_process import ServerProcess


@dataclass(frozen=True, slots=True)
class WeightFiles:
    version: str
    folder: Path


class Server:
    """A server that we start, or one that is elsewhere. It is brought up by its own thread, one thing after
    the other: of many requests that find it down, the first brings it up.

    Args:
        where: URL of one that is elsewhere, or what starts ours.
        arguments: of vLLM's engine, as the trainer needs them.
        tell: is given a line for each restart, in the server's thread.
    """

    def __init__(
        self,
        name: str,
        where: str | Callable[[], ServerProcess],
        token: str,
        options: ServersSection,
        arguments: Mapping[str, Any],
        tell: Callable[[str], None],
    ) -> None:
        self.options, self.arguments, self.tell = options, arguments, tell
        self.client = Client(name, where if isinstance(where, str) else "", token, options)
        self.start = None if isinstance(where, str) else where
        self.process: ServerProcess | None = None
        self.rounds = 0
        """How often it was brought up."""
        self.restarts = 0
        """Since the last answer."""
        self.failed: MmrlError | None = None
        """Why it is given up."""
        self._was_up = self._fits = False
        self._last_problem = ""
        """Why it was down the last time."""
        self._wanted: WeightFiles | None = None
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None] = queue.SimpleQueue()
        # A daemon: a server elsewhere that hangs does not keep the trainer from its end.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        return str(self.client)

    def take(self, weights: WeightFiles | None) -> Future[None]:
        """Bring it up, with these weights."""
        return self._submit(partial(self._take, weights))

    def recover(self, rounds: int, problem: ServerDownError) -> Future[None]:
        """Bring it up unless that was done after it had been brought up `rounds` times."""
        return self._submit(partial(self._recover, rounds, problem))

    def close(self) -> None:
        """End it where it is ours. One elsewhere that hangs is not waited for."""
        with self._lock:
            self.client.closing.set()
            self._jobs.put(None)
        self._end()  # what its thread waits for
        if self.start is not None:
            self._thread.join()
        self._end()  # one that was just being started

    def _submit(self, job: Callable[[], None]) -> Future[None]:
        future: Future[None] = Future()
        with self._lock:
            if self.client.closing.is_set():
                raise self._closed()
            self._jobs.put((job, future))
        return future

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                job()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)

    def _end(self) -> None:
        if self.process is not None:
            self.process.end()

    def _take(self, weights: WeightFiles | None) -> None:
        self._wanted = weights
        self._bring_up(ServerDownError("it does not answer"))

    def _recover(self, rounds: int, problem: ServerDownError) -> None:
        if rounds == self.rounds:
            self._bring_up(problem)

    def _bring_up(self, problem: ServerDownError) -> None:
        """Until it is well and has the weights that are wanted. MmrlError where it is given up."""
        if self.failed is not None:
            raise self.failed
        try:
            self._note_problem(problem)
            if self._was_up and (problem.hung or not self.client.is_well()):
                self._count_restart()
            while not self._try_once():
                self._count_restart()
        except MmrlError as error:
            self.failed = error
            raise
        self.rounds += 1

    def _note_problem(self, problem: ServerDownError) -> None:
        """Keep what is wrong with it; one of ours that hangs is ended."""
        self._last_problem = str(problem)
        if problem.hung:
            self._end()
        elif self.process is not None and self.process.ended():
            self._last_problem = self.process.ending()

    def _count_restart(self) -> None:
        self._fits = False
        self.restarts += 1
        most = self.options.max_restarts
        if self.restarts > most:
            raise MmrlError(
                f"{self} is down and wrote nothing since {most} restarts (rollout.servers.max_restarts): "
                f"{self._last_problem}"
            )
        what = "waited for" if self.start is None else "started again"
        self.tell(f"{self}: {self._last_problem}; it is {what} (of at most {most} times in a row the {self.restarts}.)")

    def _try_once(self) -> bool:
        if self.client.closing.is_set():
            raise self._closed()
        try:
            self._await_health()
            if self.start is None and not self._fits:
                self._check_fit()
            self._push()
        except ServerDownError as error:
            self._note_problem(error)
            self.client.closing.wait(INTERVAL_S)
            return False
        return True

    def _await_health(self) -> None:
        if not self.client.is_well():
            self._start()
            if not self._was_up:
                what = "no answer; waiting for it" if self.start is None else "starting"
                self.tell(f"{self}: {what}, up to {self.options.start_timeout_s:g} s")
            deadline = time.monotonic() + self.options.start_timeout_s
            while not self.client.is_well():
                self._check_waiting(deadline)
        self._was_up = True

    def _start(self) -> None:
        if self.start is not None:
            self._end()
            self.process = self.start()
            self.client.url, self.client.place = self.process.url, f"log: {self.process.log}"

    def _check_waiting(self, deadline: float) -> None:
        """Raise where there is nothing to wait for."""
        if self.process is not None and self.process.ended():
            text = f"{self.process.ending()} (while it started)"
            # One that never ran is wrongly configured: it would not run the next time either.
            raise ServerDownError(text) if self._was_up else MmrlError(f"{self} {text}")
        if self.client.closing.wait(INTERVAL_S):
            raise self._closed()
        if time.monotonic() > deadline:
            raise MmrlError(
                f"{self} is not ready after {self.options.start_timeout_s:g} s (rollout.servers.start_timeout_s)"
                + (f"; before, {self._last_problem}" if self._was_up else "")
            )

    def _closed(self) -> MmrlError:
        return MmrlError(f"{self} is closed")

    def _check_fit(self) -> None:
        """Others started it. Another dtype may be meant; room for shorter episodes than ours is not."""
        model = self.client.ask("GET", "/server_info?config_format=json")["vllm_config"]["model_config"]
        length, dtype = self.arguments["max_model_len"], self.arguments["dtype"]
        if model["max_model_len"] < length:
            raise MmrlError(
                f"{self} takes {model['max_model_len']} tokens, and an episode has up to {length}: "
                f"start it with --max-context {length}"
            )
        found = model["dtype"].removeprefix("torch.")
        if found != dtype:
            self.tell(f"{self} computes in {found} and the trainer in {dtype}: log-probs differ (--dtype {dtype})")
        self._fits = True

    def _push(self) -> None:
        """Hand over the weights and have everything forgotten that others computed. The version comes last: what was
        cut off is done again."""
        if self._wanted is None or self._version() == self._wanted.version:
            return
        ask = self.client.ask
        ask("POST", "/update_weight_version", {"new_version": "being replaced"})
        ask("POST", "/collective_rpc", {"method": "load_policy_files", "args": [str(self._wanted.folder)]})
        # What still runs was asked by a trainer that is gone.
        if not ask("POST", "/reset_prefix_cache?reset_running_requests=true")["success"]:
            raise MmrlError(f"{self}: its prefix cache cannot be reset")
        ask("POST", "/reset_encoder_cache")
        ask("POST", "/reset_mm_cache")
        self._set_version(self._wanted.version)

    def _set_version(self, version: str) -> None:
        self.client.ask("POST", "/update_weight_version", {"new_version": version})
        found = self._version()
        if found != version:
            raise MmrlError(f"{self} says that its weights are {found!r}, and was given {version!r}")

    def _version(self) -> str:
        return str(self.client.ask("GET", "/weight_info")["weight_version"])
