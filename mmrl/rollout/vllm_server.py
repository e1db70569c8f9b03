"""One vLLM server as the trainer sees it: its health, its weights, its answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from mmrl.config import ServersSection
from mmrl.errors import MmrlError
from mmrl.rollout.vllm_process import ServerProcess

HEALTH_S = 10.0
"""A server that takes longer to say that it is well is not."""
INTERVAL_S = 0.2
CONTEXT = httpx2.create_ssl_context()
"""Made once: it takes longer than a request."""


class ServerDownError(Exception):
    """There was no answer, and there may be one later.

    Args:
        hung: the server took too long.
    """

    def __init__(self, text: str, *, hung: bool = False) -> None:
        super().__init__(text)
        self.hung = hung


@dataclass(frozen=True, slots=True)
class Weights:
    version: str
    folder: Path


class Server:
    """A server that we start, or one that is elsewhere. All but `generate` is done by its own thread, one thing after
    the other: of many requests that find it down, the first brings it up.

    Args:
        where: URL of one that is elsewhere, or what starts ours.
    """

    def __init__(self, name: str, where: str | Callable[[], ServerProcess], token: str, options: ServersSection):
        self.name, self.options = name, options
        self.url = where if isinstance(where, str) else ""
        self.start = None if isinstance(where, str) else where
        self.process: ServerProcess | None = None
        self.rounds = 0
        """How often it was brought up."""
        self.restarts = 0
        """Since the last answer."""
        self.failed: MmrlError | None = None
        """Why it is given up."""
        self._was_up = False
        self._wanted: Weights | None = None
        self._closing = threading.Event()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def __str__(self) -> str:
        place = self.url if self.process is None else f"log: {self.process.log}"
        return f"vLLM {self.name} ({place})"

    def take(self, weights: Weights | None) -> Future[None]:
        """Bring it up, with these weights."""
        return self._thread.submit(self._take, weights)

    def recover(self, rounds: int, *, hung: bool) -> Future[None]:
        """Bring it up unless that was done after it had been brought up `rounds` times."""
        return self._thread.submit(self._recover, rounds, hung)

    async def generate(self, body: bytes, rank: int | None) -> Any:
        """The answer to a request. Raises ServerDownError, or MmrlError for a request that it does not take.

        Args:
            rank: which of several data-parallel engines is asked; None leaves it to the server.
        """
        timeout = httpx2.Timeout(self.options.timeout_s, connect=HEALTH_S)
        headers = self._headers | {"Content-Type": "application/json"}
        if rank is not None:
            headers["X-data-parallel-rank"] = str(rank)
        try:
            async with httpx2.AsyncClient(verify=CONTEXT, trust_env=False, timeout=timeout) as client:
                response = await client.post(f"{self.url}/inference/v1/generate", content=body, headers=headers)
        except httpx2.TransportError as error:
            raise self._down(error) from None
        if response.status_code >= 500:
            raise ServerDownError(f"{self}: {response.status_code} {response.text[:300]}")
        return self._read(response)

    def close(self) -> None:
        self._closing.set()
        self._end()  # what its thread waits for
        self._thread.shutdown(wait=self.start is not None, cancel_futures=True)
        self._end()  # one that was just being started

    def _end(self) -> None:
        if self.process is not None:
            self.process.end()

    def _take(self, weights: Weights | None) -> None:
        self._wanted = weights
        self._bring_up()

    def _recover(self, rounds: int, hung: bool) -> None:
        if rounds == self.rounds:
            if hung:
                self._end()
            self._bring_up()

    def _bring_up(self) -> None:
        """Until it is well and has the weights that are wanted. MmrlError where it is given up."""
        if self.failed is not None:
            raise self.failed
        try:
            while not self._try_once():
                pass
        except MmrlError as error:
            self.failed = error
            raise
        self.rounds += 1

    def _try_once(self) -> bool:
        try:
            self._await_health()
            self._push()
        except ServerDownError:
            return False
        return True

    def _await_health(self) -> None:
        if self._is_well():
            return
        if self._closing.is_set():
            raise MmrlError(f"{self}: closed")
        if self._was_up:
            self._count_restart()
        if self.start is not None:
            self._end()
            self.process = self.start()
            self.url = self.process.url
        deadline = time.monotonic() + self.options.start_timeout_s
        while not self._is_well():
            self._check_waiting(deadline)
        self._was_up = True

    def _count_restart(self) -> None:
        self.restarts += 1
        if self.restarts > self.options.max_restarts:
            raise MmrlError(
                f"{self} is down and wrote nothing since {self.options.max_restarts} restarts "
                "(rollout.servers.max_restarts)"
            )

    def _check_waiting(self, deadline: float) -> None:
        """Raise where there is nothing to wait for."""
        process = self.process
        if process is not None and process.ended():
            text = f"{self} ended with code {process.process.returncode} while it started: {process.last_error()}"
            # One that never ran is wrongly configured: it would not run the next time either.
            raise ServerDownError(text) if self._was_up else MmrlError(text)
        if self._closing.wait(INTERVAL_S):
            raise MmrlError(f"{self}: closed")
        if time.monotonic() > deadline:
            raise MmrlError(
                f"{self} is not ready after {self.options.start_timeout_s:g} s (rollout.servers.start_timeout_s)"
            )

    def _is_well(self) -> bool:
        with suppress(httpx2.TransportError):
            return self._send("GET", "/health", timeout=HEALTH_S).status_code == 200
        return False

    def _push(self) -> None:
        """Hand over the weights and have everything forgotten that others computed. The version comes last: what was
        cut off is done again."""
        if self._wanted is None or self._version() == self._wanted.version:
            return
        self._ask("POST", "/collective_rpc", {"method": "take_weights", "args": [str(self._wanted.folder)]})
        # What still runs was asked by a trainer that is gone.
        if not self._ask("POST", "/reset_prefix_cache?reset_running_requests=true")["success"]:
            raise MmrlError(f"{self}: its prefix cache cannot be reset")
        self._ask("POST", "/reset_encoder_cache")
        self._ask("POST", "/reset_mm_cache")
        self._set_version(self._wanted.version)

    def _set_version(self, version: str) -> None:
        self._ask("POST", "/update_weight_version", {"new_version": version})
        found = self._version()
        if found != version:
            raise MmrlError(f"{self} says that its weights are {found!r}, and was given {version!r}")

    def _version(self) -> str:
        return str(self._ask("GET", "/weight_info")["weight_version"])

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        try:
            response = self._send(method, path, body, self.options.timeout_s)
        except httpx2.TransportError as error:
            raise self._down(error) from None
        if response.status_code >= 500 and not self._is_well():
            raise ServerDownError(f"{self}: {path} answered {response.status_code}")
        return self._read(response)

    def _send(self, method: str, path: str, body: Any = None, timeout: float = HEALTH_S) -> httpx2.Response:
        with httpx2.Client(verify=CONTEXT, trust_env=False, headers=self._headers) as client:
            return client.request(method, self.url + path, json=body, timeout=httpx2.Timeout(timeout, connect=HEALTH_S))

    def _read(self, response: httpx2.Response) -> Any:
        if response.status_code == 401:
            raise MmrlError(
                f"{self} refuses the token: {self.options.token_env} must hold the one that it was started with"
            )
        if response.status_code != 200:
            text = " ".join(response.text.split())[:300]
            raise MmrlError(f"{self}: {response.url.path} answered {response.status_code}: {text}")
        return response.json() if response.content else None

    def _down(self, error: httpx2.TransportError) -> ServerDownError:
        hung = isinstance(error, httpx2.ReadTimeout)
        what = f"no answer in {self.options.timeout_s:g} s (rollout.servers.timeout_s)" if hung else repr(error)
        return ServerDownError(f"{self}: {what}", hung=hung)
