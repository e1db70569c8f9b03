"""Whom a vLLM server answers: vLLM's own --api-key leaves the paths that change weights open."""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

TOKEN = "MMRL_ENGINE_TOKEN"
"""Environment variable of the server's process that holds its token; without it everybody is answered."""
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """ASGI middleware: 401 without "Authorization: Bearer TOKEN", whatever the path, /health excepted."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        token = os.environ.get(TOKEN)
        self.expected = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if self.expected is None or scope["type"] == "lifespan" or self._admits(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"wrong token"})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _admits(self, scope: Message) -> bool:
        if scope["type"] == "http" and scope["path"] == "/health":
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self.expected or b"")
