"""Temporary folders that do not outlive their process for long, however it ends."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from train.files import is_open_at, lock

_OLD = 24 * 3600
"""Seconds after which a folder is a leftover where the file system has no locks."""


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Makes a folder and removes it at the end. It is locked: the lock says that its process lives.

    Raises:
        OSError: it cannot be made.
    """
    folder, handle = _create(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def remove_leftovers(parent: Path, prefix: str) -> None:
    """Removes the folders of `temporary_folder` whose processes were killed; the kernel has released their locks."""
    with suppress(OSError), os.scandir(parent) as entries:
        found = [Path(entry.path) for entry in entries if entry.name.startswith(prefix)]
        for folder in found:
            with suppress(OSError):
                handle = _open(folder)
                try:
                    held = lock(handle)
                    if held is None:
                        held = time.time() - os.fstat(handle).st_mtime > _OLD
                    if held and is_open_at(handle, folder):
                        shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(handle)


def _create(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        with suppress(FileNotFoundError):
            handle = _open(folder)
            if lock(handle) is not False and is_open_at(handle, folder):
                return folder, handle
            os.close(handle)
        # Another process took it for a leftover before it was locked.


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
