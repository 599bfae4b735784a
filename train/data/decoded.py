"""Decoded copies on disk: the first start decodes a split, later ones map what it wrote."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from train.data.kind import Arrays


def fingerprint(parts: Iterable[object]) -> str:
    """A short hash that changes when any of the parts does."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() + b"\0")
    return digest.hexdigest()[:16]


def read_copy(folder: Path) -> Arrays | None:
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
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as temporary:
            copy = Path(temporary, "copy")
            copy.mkdir()
            for name, array in zip(("images", "labels"), arrays, strict=True):
                with open(copy / f"{name}.npy", "wb") as file:
                    np.save(file, array)
                    file.flush()
                    os.fsync(file.fileno())  # a crash must not leave a folder of zeros behind
            there = read_copy(folder)
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
