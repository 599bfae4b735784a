"""Where decoded images live: in one array with a copy on disk, or decoded batch by batch."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from train.data.errors import DataError

Arrays = tuple[np.ndarray, np.ndarray]
"""``(images uint8[n, h, w, c], labels int32[n])``."""

Fetch = Callable[[np.ndarray], Arrays]
"""Reads the examples at ``indices int[n]``."""

_CHUNK = 64  # examples a thread decodes at a time: enough to hide the cost of handing them out


def from_arrays(images: np.ndarray, labels: np.ndarray) -> Fetch:
    """Random access to arrays: one gather of rows a batch."""

    def fetch(indices: np.ndarray) -> Arrays:
        # Plain arrays, of mapped files too, which NumPy would hand on as their subclass.
        return np.asarray(np.take(images, indices, axis=0)), np.asarray(np.take(labels, indices))

    return fetch


def per_batch(decode: Fetch, shape: tuple[int, int, int], memory_limit: int, where: str) -> Fetch:
    """Decodes every batch anew, in threads: for sets that do not fit in memory."""

    def fetch(indices: np.ndarray) -> Arrays:
        if (taken := len(indices) * math.prod(shape)) > memory_limit:
            raise DataError(
                f"{where}: {len(indices)} images of {shape[0]} x {shape[1]} at once take {taken} bytes, over the limit "
                f"of {memory_limit}; read fewer at once (--batch-size, --evaluation.examples) or smaller ones "
                "(--data.image-size)"
            )
        parts = min(_num_threads(), len(indices)) or 1
        pieces = list(_pool().map(decode, np.array_split(indices, parts)))
        images, labels = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        return images, labels

    return fetch


def labelled(decode: Fetch, num_classes: int, where: str) -> Fetch:
    """`decode` with its labels checked."""

    def fetch(indices: np.ndarray) -> Arrays:
        images, labels = decode(indices)
        check_labels(labels, num_classes, where, indices)
        return images, labels

    return fetch


def decode_all(decode: Fetch, size: int, shape: tuple[int, int, int], title: str) -> Arrays:
    """Decodes a whole split into memory, with a progress bar on a terminal.

    The first example that fails ends it, with the example's own ``DataError``.
    """
    from tqdm import tqdm

    images, labels = np.empty((size, *shape), np.uint8), np.empty(size, np.int32)

    def fill(start: int) -> int:
        stop = min(start + _CHUNK, size)
        images[start:stop], labels[start:stop] = decode(np.arange(start, stop))
        return stop - start

    bar = tqdm(total=size, desc=title, unit="img", disable=not sys.stderr.isatty(), leave=False)
    with bar:
        for done in _pool().map(fill, range(0, size, _CHUNK)):
            bar.update(done)
    return images, labels


def check_labels(labels: np.ndarray, num_classes: int, where: str, indices: np.ndarray | None = None) -> None:
    """Raises ``DataError`` on the first label outside ``[0, num_classes)``."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        index = wrong[0] if indices is None else indices[wrong[0]]
        raise DataError(
            f"{where}: label {labels[wrong[0]]} of example {index} is not in 0..{num_classes - 1} "
            f"({wrong.size} such labels); correct the labels or use a labelled split"
        )


def fingerprint(parts: Iterable[object]) -> str:
    """A short hash that changes when any of the parts does."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() + b"\0")
    return digest.hexdigest()[:16]


def read_cache(folder: Path) -> Arrays | None:
    """Opens a decoded copy, memory-mapped; None where there is none that can be read."""
    if any(path.is_symlink() for path in (folder.parent, folder, folder / "images.npy", folder / "labels.npy")):
        return None
    try:
        # Mapped, an array cannot be larger than its file, whatever the header claims; objects are refused.
        images, labels = (np.lib.format.open_memmap(folder / f"{name}.npy", mode="r") for name in ("images", "labels"))
    except Exception:  # hostile headers raise nearly anything
        return None
    sound = images.ndim == 4 and images.dtype == np.uint8
    sound = sound and labels.shape == images.shape[:1] and labels.dtype == np.int32
    return (images, labels) if sound else None


def write_cache(folder: Path, arrays: Arrays) -> None:
    """Keeps a decoded copy for the next start, and drops those of other files with the same options.

    The folder's name is ``SPLIT-OPTIONS-FINGERPRINT``. It appears complete or not at all, so processes may write it
    at the same time; the first one stays. Where it cannot be written, or where it would be written through a link that
    came with the data, the next start decodes again.
    """
    if folder.parent.is_symlink():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as temporary:
            copy = Path(temporary, "copy")
            copy.mkdir()
            for name, array in zip(("images", "labels"), arrays, strict=True):
                with open(copy / f"{name}.npy", "wb") as file:
                    np.save(file, array)
                    file.flush()
                    os.fsync(file.fileno())  # a crash must not leave a folder of zeros behind
            there = read_cache(folder)
            if there is not None and there[0].shape == arrays[0].shape:
                return  # another process was faster, and others may have mapped its copy
            shutil.rmtree(folder, ignore_errors=True)
            copy.rename(folder)
    except OSError:
        return
    stem = folder.name.rpartition("-")[0]
    for other in folder.parent.glob(f"{stem}-*"):
        if other != folder and len(other.name) == len(folder.name):
            shutil.rmtree(other, ignore_errors=True)


def _num_threads() -> int:
    return min(32, os.cpu_count() or 1)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_num_threads(), thread_name_prefix="decode")
