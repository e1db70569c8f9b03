"""Files that media are read from: inside their root, regular, and no larger than allowed."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

from mmrl.errors import MediaError
from mmrl.types import MediaRef


def name_of(ref: MediaRef) -> str:
    """What error messages and labels call a medium."""
    if ref.pictures:
        return f"{ref.pictures[0]} .. {ref.pictures[-1]}"
    return ref.path or f"{len(ref.data or b'')} bytes"


def confined(ref: MediaRef) -> Path:
    """The file of `ref`, links resolved; MediaError where it lies outside its root."""
    root = Path(ref.root or ".").resolve()
    try:
        path = (root / (ref.path or "")).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise MediaError(f"{ref.kind} {ref.path!r}: not a usable path ({error})") from None
    if not path.is_relative_to(root):
        raise MediaError(f"{ref.kind} {ref.path}: leads out of its folder {root}; move the file there")
    return path


def open_file(ref: MediaRef, max_bytes: int) -> BinaryIO:
    """The encoded file, open for reading; bytes that have no path are put into a nameless file."""
    if ref.data is not None:
        file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
        file.write(ref.data)
        file.seek(0)
    else:
        file = _open(ref, confined(ref))
    if os.fstat(file.fileno()).st_size > max_bytes:
        file.close()
        raise MediaError(f"{ref.kind} {name_of(ref)}: file is larger than {max_bytes} bytes")
    return file


def _open(ref: MediaRef, path: Path) -> BinaryIO:
    # Without O_NONBLOCK, opening a pipe would wait for its other end.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return os.fdopen(fd, "rb")
        os.close(fd)
    except OSError as error:
        why = error.strerror or error
        raise MediaError(f"{ref.kind} {ref.path}: cannot be read ({why}); check the path") from None
    raise MediaError(f"{ref.kind} {ref.path}: cannot be read (not a regular file); check the path")


def read_file(ref: MediaRef, max_bytes: int) -> bytes:
    """The encoded file."""
    if ref.data is not None:
        return ref.data
    try:
        with open_file(ref, max_bytes) as file:
            return file.read()
    except OSError as error:
        why = error.strerror or error
        raise MediaError(f"{ref.kind} {ref.path}: cannot be read ({why}); check the path") from None
