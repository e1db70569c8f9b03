"""Messages between a process and its workers: a JSON header, raw bytes, and perhaps an open file. No pickle."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from typing import Any, BinaryIO

LENGTH = struct.Struct(">I")
Message = tuple[dict[str, Any], bytearray, BinaryIO | None]


def send(
    connection: socket.socket, header: dict[str, Any], payload: memoryview | bytes = b"", file: BinaryIO | None = None
) -> None:
    text = json.dumps({**header, "bytes": len(payload)}).encode()
    socket.send_fds(connection, [LENGTH.pack(len(text))], [file.fileno()] if file else [])
    connection.sendall(text)
    connection.sendall(payload)


def receive(connection: socket.socket, deadline: float | None = None) -> Message:
    """The next message. EOFError where the other end has gone, TimeoutError at the deadline (of `time.monotonic`)."""
    _limit(connection, deadline)
    first, fds, _, _ = socket.recv_fds(connection, LENGTH.size, 1)
    file = os.fdopen(fds[0], "rb") if fds else None
    first += _exactly(connection, LENGTH.size - len(first) if first else 0, deadline)
    if not first:
        raise EOFError
    header = json.loads(_exactly(connection, LENGTH.unpack(first)[0], deadline))
    return header, _exactly(connection, header["bytes"], deadline), file


def _exactly(connection: socket.socket, size: int, deadline: float | None) -> bytearray:
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        _limit(connection, deadline)
        count = connection.recv_into(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return data


def _limit(connection: socket.socket, deadline: float | None) -> None:
    if deadline is not None:
        connection.settimeout(max(1e-3, deadline - time.monotonic()))
