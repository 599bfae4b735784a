"""Reading and writing small files: whole or not at all, patient with network file systems, bounded in size."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")

_TRANSIENT = {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
"""Errors that a network file system may recover from."""

MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
"""Errors of a missing file or a damaged name. Any other error of the system says nothing about what is on disk."""


def may_be_intact(error: BaseException) -> bool:
    """Whether a file whose reading raised an error may be intact: memory is short, or the system failed otherwise.

    Libraries raise an `OSError` without a number for content that they cannot read.
    """
    if isinstance(error, OSError):
        return error.errno not in {None, *MISSING}
    return isinstance(error, MemoryError)


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


def open_regular(path: Path, *, limit: int) -> BinaryIO:
    """Opens a file for reading, if it is a regular one of bounded size; a pipe would block, a device never end.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not a regular file, or larger than `limit` bytes.
    """
    # Not blocking, because opening a pipe to look at it would wait for a writer.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    try:
        facts = os.fstat(handle)
        if stat.S_ISDIR(facts.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        if facts.st_size > limit:
            raise ValueError(f"{path.name} is larger than {limit} bytes")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: Path, *, limit: int) -> bytes:
    """Reads a regular file of at most `limit` bytes, `patiently`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a regular file, or larger than `limit`.
    """

    def read() -> bytes:
        with open_regular(path, limit=limit) as file:
            return file.read(limit + 1)

    data = patiently(read)
    if len(data) > limit:  # it has grown, or its file system does not say its size
        raise ValueError(f"{path.name} is larger than {limit} bytes")
    return data


def read_json(path: Path, *, limit: int) -> Any:
    """Reads a JSON file, `patiently`.

    Args:
        path: the file.
        limit: largest size in bytes: a larger file is damaged or untrusted and would exhaust memory.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a regular file, larger than `limit`, or not JSON.
    """
    data = read_bytes(path, limit=limit)
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
    write_chunks(path, lambda: [data])


def write_chunks(path: Path, chunks: Callable[[], Iterable[bytes]]) -> None:
    """Writes as `write_bytes` what `chunks` gives, which is called again for every try."""
    patiently(lambda: _write_whole(path, chunks()))


def _write_whole(path: Path, chunks: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    handle, temporary = _create_temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # errors of write and fsync do not name the file
        raise


def _create_temporary(path: Path) -> tuple[int, str]:
    """A locked temporary file beside `path`: the lock says that its writer lives."""
    while True:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        if lock(handle) is not False and is_open_at(handle, Path(temporary)):
            return handle, temporary
        os.close(handle)  # another process takes it for a leftover: it came before the lock


def _remove_leftovers(path: Path) -> None:
    """Removes the temporary files of `path` whose writers were killed; the kernel has released their locks."""
    start = f".{path.name}."
    for other in path.parent.iterdir():
        if not other.name.startswith(start) or len(other.name) != len(start) + 8:
            continue
        with suppress(OSError):
            handle = os.open(other, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if lock(handle) and is_open_at(handle, other):
                    other.unlink()
            finally:
                os.close(handle)


def lock(handle: int) -> bool | None:
    """Locks an open file until it is closed, by this process or by its end.

    Returns:
        True; False if another process holds the lock; None where the system or the file system has no locks.
    """
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def is_open_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one that a path names, not one that was removed from there or replaced."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except OSError:
        return False
