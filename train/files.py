"""Reading and writing small files: whole or not at all, patient with network file systems, bounded in size."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_TRANSIENT = {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
"""Errors that a network file system may recover from."""


def is_storage_failure(error: BaseException) -> bool:
    """Whether an error means that a disk is full or does not answer, rather than that a path is wrong."""
    return isinstance(error, OSError) and error.errno in {*_TRANSIENT, errno.ENOSPC, errno.EDQUOT}


def patiently(action: Callable[[], T]) -> T:
    """Calls `action` up to four times within three seconds while it raises transient errors of a file system."""
    for pause in (0.2, 0.6, 2.0):
        try:
            return action()
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
        time.sleep(pause)
    return action()


def read_json(path: Path, *, limit: int) -> Any:
    """Reads a JSON file, `patiently`.

    Args:
        path: the file.
        limit: largest size in bytes: a larger file is damaged or untrusted and would exhaust memory.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is larger than `limit`, or not JSON.
    """

    def read() -> bytes:
        with path.open("rb") as file:
            return file.read(limit + 1)

    data = patiently(read)
    if len(data) > limit:
        raise ValueError(f"{path.name} is larger than {limit} bytes")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as `write_bytes`; refuses NaN and infinities, which are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 as `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, `patiently`, and makes its folder: no reader ever sees half of it."""
    patiently(lambda: _write_whole(path, data))


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # errors of write and fsync do not name the file
        raise
