"""Decoded copies on disk: the first start decodes a split, later ones read what it wrote.

A copy is a folder with ``images.npy``, ``labels.npy`` and ``checksums.json``. It is read into memory and checked as a
whole; a mapped file could change during the training, and its end could go missing, which ends a process by SIGBUS.
"""

from __future__ import annotations

import glob
import hashlib
import io
import math
import os
import shutil
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from train.data import temporary
from train.data.kind import Arrays
from train.errors import one_line, say
from train.files import open_regular, read_json, write_json

_CHECKSUMS = "checksums.json"
_DTYPES: dict[str, np.dtype[Any]] = {"images": np.dtype(np.uint8), "labels": np.dtype(np.int32)}
_MAX_HEADER = 2**12
_PREFIX = ".writing-"


def fingerprint(parts: Iterable[object]) -> str:
    """A short hash that changes when any of the parts does."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() + b"\0")
    return digest.hexdigest()[:16]


def facts(status: os.stat_result) -> tuple[int, int, int]:
    """What changes with a file's content: its size, and the times of its content and of its inode.

    Copying tools set the first time to that of the original. The second one they cannot set.
    """
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left beside a copy when they wrote it or another one."""
    if not folder.parent.is_symlink():
        temporary.remove_leftovers(folder.parent, _PREFIX)


def read_copy(folder: Path, size: int, memory_limit: int) -> Arrays | None:
    """Reads a decoded copy into memory.

    Args:
        folder: of the copy.
        size: the number of examples it must have.
        memory_limit: the most bytes its images may take.

    Returns:
        None where there is no such copy, or one that cannot be used, which is said on standard error.
    """
    if folder.parent.is_symlink() or folder.is_symlink():
        return None
    try:
        return _read(folder, size, memory_limit)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        say(f"{folder}: this decoded copy cannot be used ({one_line(error)}); decoding again")
        return None


def write_copy(folder: Path, arrays: Arrays) -> None:
    """Keeps a decoded copy for the next start, and deletes copies of earlier contents with the same options.

    The folder's name is ``SPLIT-OPTIONS-FINGERPRINT``. It appears complete or not at all, so several processes may
    write it at the same time; the first one stays. If it cannot be written, or its parent is a symbolic link that came
    with the data, nothing is written and the next start decodes again.
    """
    if folder.parent.is_symlink():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary.temporary_folder(folder.parent, _PREFIX) as place:
            copy = place / "copy"
            copy.mkdir()
            _write(copy, arrays)
            with suppress(OSError, ValueError):
                _read(folder, len(arrays[1]), arrays[0].nbytes)
                return  # another process was faster
            if folder.is_symlink():
                folder.unlink()
            shutil.rmtree(folder, ignore_errors=True)
            copy.rename(folder)
    except OSError:
        return
    stem = folder.name.rpartition("-")[0]
    for other in folder.parent.glob(f"{glob.escape(stem)}-*"):
        if other != folder and len(other.name) == len(folder.name):
            shutil.rmtree(other, ignore_errors=True)


def _read(folder: Path, size: int, memory_limit: int) -> Arrays | None:
    """Reads and checks a copy; None if it has another size.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file has the wrong content.
    """
    stored = read_json(folder / _CHECKSUMS, limit=_MAX_HEADER)
    try:
        shape = tuple(int(length) for length in stored["shape"])
        bytes_and_checksums = {name: (int(stored[name]["bytes"]), stored[name]["crc32"]) for name in _DTYPES}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{_CHECKSUMS} is incomplete") from error
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"{_CHECKSUMS} has the shape {shape}")
    if shape[0] != size or math.prod(shape) > memory_limit:
        return None
    images = _read_array(folder, "images", shape, *bytes_and_checksums["images"])
    return images, _read_array(folder, "labels", shape[:1], *bytes_and_checksums["labels"])


def _read_array(folder: Path, name: str, shape: tuple[int, ...], file_bytes: int, checksum: object) -> np.ndarray:
    """The array at the end of a file. NumPy's header before it is not interpreted: it could claim anything."""
    path, dtype = folder / f"{name}.npy", _DTYPES[name]
    if path.is_symlink():
        raise ValueError(f"{path.name} is a symbolic link")
    header_bytes = file_bytes - math.prod(shape) * dtype.itemsize
    if not 0 < header_bytes <= _MAX_HEADER:
        raise ValueError(f"{_CHECKSUMS} is wrong about {path.name}")
    with open_regular(path, limit=file_bytes) as file:
        if (found := os.fstat(file.fileno()).st_size) != file_bytes:  # before memory is allocated
            raise ValueError(f"{path.name} has {found} bytes, not {file_bytes}")
        header = file.read(header_bytes)
        array: np.ndarray = np.fromfile(file, dtype, math.prod(shape))
    if array.size != math.prod(shape):
        raise ValueError(f"{path.name} was cut off while it was read")
    array = array.reshape(shape)
    if _checksum(header, array) != checksum:
        raise ValueError(f"{path.name} has another checksum")
    return array


def _write(folder: Path, arrays: Arrays) -> None:
    checksums: dict[str, object] = {"shape": arrays[0].shape}
    for name, array in zip(_DTYPES, arrays, strict=True):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        with open(folder / f"{name}.npy", "wb") as file:
            file.write(header.getvalue())
            file.write(array.data)
            file.flush()
            os.fsync(file.fileno())  # a crash must not leave a folder of zeros behind
        file_bytes = len(header.getvalue()) + array.nbytes
        checksums[name] = {"bytes": file_bytes, "crc32": _checksum(header.getvalue(), array)}
    write_json(folder / _CHECKSUMS, checksums)


def _checksum(header: bytes, array: np.ndarray) -> int:
    """CRC-32 of a file and of its array's shape, which the file of checksums could have wrong."""
    return zlib.crc32(array.data, zlib.crc32(header, zlib.crc32(repr(array.shape).encode())))
