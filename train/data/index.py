"""The index of a large image folder: later starts check it instead of scanning the folder.

An index is trusted while every directory and a sample of the files have the sizes and times of the scan. Adding,
removing or renaming a file changes the time of its directory. A file outside of the sample that is overwritten in place
goes unnoticed until the index is deleted: decoding reads its new content, but a decoded copy keeps the old one.
"""

from __future__ import annotations

import functools
import io
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from train.data.decoded import facts
from train.data.kind import SPLIT_NAMES
from train.data.listing import Files, Listing, scan
from train.files import open_regular, write_bytes

INDEXED = 10_000
"""Folders with fewer files are scanned at every start: that takes less than 0.1 seconds and notices every change."""

_FORMAT = 1
_SAMPLE = 1024
_MAX_BYTES = 2**34
_SETTLED = 2 * 10**9  # nanoseconds: some file systems keep times in steps of a second or two


def list_images(root: Path, index: Path | None) -> Listing:
    """The images of a folder, from its index if it has one and has not changed.

    Args:
        root: the folder, ``SPLIT/CLASS/*``, or ``CLASS/*`` of which a fixed part of every class is the test split.
        index: where the index of a large folder is kept; None for nowhere.

    Raises:
        DataError: a folder cannot be listed, or contains links or what is no file.
    """
    with suppress(OSError):
        if index is not None and (kept := _load(index, facts(index.stat()))) and _is_current(root, kept):
            return kept
    listing = scan(root)
    if index is not None and sum(len(files.names) for files in listing.splits.values()) >= INDEXED:
        with suppress(OSError):
            _save(index, listing)
            # The copy that the next splits will share in memory.
            return _load(index, facts(index.stat())) or listing
    return listing


def _is_current(root: Path, listing: Listing) -> bool:
    """Whether the directories and a sample of the files are as they were scanned."""
    if listing.directory_facts[:, 1:].max() > listing.scanned - _SETTLED:
        return False  # a change within a step of the file system's clock would not be seen

    def same(path: Path, expected: np.ndarray) -> bool:
        return facts(path.lstat()) == tuple(expected.tolist())

    for directory, expected in zip(listing.directories, listing.directory_facts, strict=True):
        if not same(root / os.fsdecode(bytes(directory)), expected):
            return False
    for split, files in listing.splits.items():
        count = len(files.names)
        for index in np.linspace(0, count - 1, min(count, _SAMPLE), dtype=np.int64):
            if not same(listing.path(root, split, index), files.facts[index]):
                return False
    return True


def _save(index: Path, listing: Listing) -> None:
    arrays = {
        f"{split}.{name}": value for split, files in listing.splits.items() for name, value in files._asdict().items()
    }
    for name in list(arrays):
        if name.endswith(".class_names"):
            arrays[name] = np.array([os.fsencode(one) for one in arrays[name]], np.bytes_)
    stream = io.BytesIO()
    np.savez(
        stream,
        format=_FORMAT,
        directories=listing.directories,
        directory_facts=listing.directory_facts,
        scanned=listing.scanned,
        remark=np.array(os.fsencode(listing.remark)),
        **arrays,
    )
    write_bytes(index, stream.getvalue())


@functools.lru_cache(maxsize=2)  # one copy for all splits
def _load(index: Path, _: tuple[int, int, int]) -> Listing | None:
    """Reads an index; None for one that is damaged or of another format. The second argument changes with the file."""
    try:
        with open_regular(index, limit=_MAX_BYTES) as file, np.load(file, allow_pickle=False) as stored:
            if stored["format"] != _FORMAT:
                return None
            splits = {}
            for split in SPLIT_NAMES:
                if f"{split}.names" in stored:
                    parts: dict[str, Any] = {name: stored[f"{split}.{name}"] for name in Files._fields}
                    parts["class_names"] = tuple(os.fsdecode(bytes(name)) for name in parts["class_names"])
                    splits[split] = Files(**parts)
            remark = os.fsdecode(bytes(stored["remark"][()]))
            return Listing(splits, stored["directories"], stored["directory_facts"], int(stored["scanned"]), remark)
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile):
        return None
