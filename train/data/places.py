"""Data sets that are named by a path: where they are, and where they have moved."""

from __future__ import annotations

import os
from pathlib import Path

from train.data import embedded, folder, listing, npz, prepared
from train.data.kind import default_data_dir, user_path
from train.errors import DataError

_FOLDER = "folder:"


def absolute(name: str, data_dir: Path | None = None) -> str:
    """The name of a data set with its path made absolute, if it is one: it then means the same in every folder."""
    path = name.removeprefix(_FOLDER)
    known = embedded.accepts(name, data_dir) or prepared.accepts(name, data_dir)
    if npz.accepts(name, data_dir) or (not known and folder.accepts(name, data_dir)):
        return name[: len(name) - len(path)] + os.path.abspath(user_path(path))
    return name


def path_of(name: str) -> Path | None:
    """The path in the `absolute` name of a data set; None for a set that is known by name."""
    path = name.removeprefix(_FOLDER)
    return Path(path) if path != name or path.endswith(".npz") or os.path.isabs(path) else None


def usual(name: str) -> Path:
    """Where a set is if no folder of sets is named: its path, or the first of the usual folders that has it."""
    path = path_of(name)
    if path is not None:
        return path
    return default_data_dir() if embedded.accepts(name, None) else prepared.usual(name)


def moved(name: str, data_dir: str | Path) -> str | None:
    """The name of a set that has moved.

    Args:
        name: its `absolute` name.
        data_dir: where it is now, or the folder that holds it under its old name.

    Returns:
        Its absolute name there; None if it is not there, or is no set that is named by a path.
    """
    path, place = path_of(name), user_path(data_dir)
    if path is None:
        return None
    start = _FOLDER if name.startswith(_FOLDER) else ""
    for candidate in (place, place / path.name):
        there = listing.has_images if start else listing.has_splits
        if candidate.is_file() if path.suffix == ".npz" and not start else there(candidate):
            return start + os.path.abspath(candidate)
    return None


def find_moved(name: str, data_dir: str | Path) -> str:
    """As `moved`.

    Raises:
        DataError: it is not there.
    """
    found = moved(name, data_dir)
    if found is None:
        raise DataError(f"{data_dir} is not {path_of(name)}, nor holds it: say by --data-dir where it is now")
    return found
