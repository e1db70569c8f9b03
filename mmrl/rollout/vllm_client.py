"""HTTP to one vLLM server: what it answers, or why there is no answer."""

from __future__ import annotations

import asyncio
import errno
import threading
from contextlib import suppress
from typing import Any

import httpx2

from mmrl.config import ServersSection
from mmrl.errors import MmrlError

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


class Client:
    """Asks one server. A lack of open files in this process is no fault of the server's: it is waited for."""

    def __init__(self, name: str, url: str, token: str, options: ServersSection) -> None:
        self.name, self.url, self.options = name, url, options
        self.place = url
        """What errors say of it beside its name."""
        self.closing = threading.Event()
        """Ends waiting."""
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def __str__(self) -> str:
        return f"vLLM {self.name} ({self.place})"

    async def generate(self, body: bytes, rank: int | None) -> Any:
        """The answer to a request. Raises ServerDownError, or MmrlError for a request that it does not take.

        Args:
            rank: which of several data-parallel engines is asked; None leaves it to the server.
        """
        headers = self._headers | {"Content-Type": "application/json"}
        if rank is not None:
            headers["X-data-parallel-rank"] = str(rank)
        response = await self._post("/inference/v1/generate", body, headers)
        if response.status_code >= 500:
            raise ServerDownError(f"{response.status_code} {response.text[:300]}")
        return self._read(response)

    def is_well(self) -> bool:
        with suppress(httpx2.TransportError):
            return self._send("GET", "/health", None, HEALTH_S).status_code == 200
        return False

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """ServerDownError without an answer, MmrlError for one that says no."""
        try:
            response = self._send(method, path, body, self.options.timeout_s)
        except httpx2.TransportError as error:
            raise self._down(error) from None
        if response.status_code >= 500 and not self.is_well():
            raise ServerDownError(f"{path} answered {response.status_code}")
        return self._read(response)

    def _send(self, method: str, path: str, body: Any, timeout: float) -> httpx2.Response:
        limits = httpx2.Timeout(timeout, connect=HEALTH_S)
        while True:
            try:
                with httpx2.Client(verify=CONTEXT, trust_env=False, headers=self._headers) as client:
                    return client.request(method, self.url + path, json=body, timeout=limits)
            except httpx2.TransportError as error:
                if not out_of_files(error) or self.closing.wait(INTERVAL_S):
                    raise

    async def _post(self, path: str, body: bytes, headers: dict[str, str]) -> httpx2.Response:
        limits = httpx2.Timeout(self.options.timeout_s, connect=HEALTH_S)
        while True:
            try:
                async with httpx2.AsyncClient(verify=CONTEXT, trust_env=False, headers=headers) as client:
                    return await client.post(self.url + path, content=body, timeout=limits)
            except httpx2.TransportError as error:
                if not out_of_files(error) or self.closing.is_set():
                    raise self._down(error) from None
            await asyncio.sleep(INTERVAL_S)

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
        return ServerDownError(what, hung=hung)


def out_of_files(error: BaseException | None) -> bool:
    """Whether this process may open no more files, sockets included."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__ or error.__context__
    return False
