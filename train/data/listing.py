"""The image files of a folder: one scan, into arrays that take some 60 bytes a file."""

from __future__ import annotations

import os
import stat
import time
import unicodedata
from array import array
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.data.decoded import facts
from train.data.kind import SPLIT_NAMES, stored_split
from train.data.order import permutation
from train.errors import DataError, one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

_SUFFIXES = frozenset(SUFFIXES)

TEST_SHARE = 0.1
"""Share of every class that is the test split of a folder without splits."""


class Files(NamedTuple):
    """The images of one split, by class, directory and name.

    Attributes:
        class_names: sorted names of the classes that have images.
        labels: ``int32[n]``, indices into `class_names`.
        directories: ``int32[n]``, indices into `Listing.directories`.
        names: ``bytes[n]``.
        facts: ``int64[n, 3]``, what changes with a file's content.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    directories: np.ndarray
    names: np.ndarray
    facts: np.ndarray

    def at(self, rows: np.ndarray) -> Files:
        """Some of the files."""
        return self._replace(
            **{name: getattr(self, name)[rows] for name in ("labels", "directories", "names", "facts")}
        )


class Listing(NamedTuple):
    """The image files of a folder.

    Attributes:
        splits: by the split's name, in the order of `SPLIT_NAMES`.
        directories: ``bytes[d]``, all that were listed, relative to the folder.
        directory_facts: ``int64[d, 3]``.
        scanned: when the scan began, in nanoseconds since 1970.
        remark: says what was left out; empty for nothing.
    """

    splits: dict[str, Files]
    directories: np.ndarray
    directory_facts: np.ndarray
    scanned: int
    remark: str

    def path(self, root: Path, split: str, index: int) -> Path:
        """The path of a split's image."""
        files = self.splits[split]
        parts = self.directories[files.directories[index]], files.names[index]
        return root.joinpath(*(os.fsdecode(bytes(part)) for part in parts))


def has_splits(root: Path) -> bool:
    """Whether a folder has one of the splits in it."""
    # Not dev, or the root of the file system were a data set.
    return any((root / name).is_dir() for names in SPLIT_NAMES.values() for name in names if name != "dev")


def has_images(root: Path) -> bool:
    """Whether a folder has splits, or folders with images in it."""
    if has_splits(root):
        return True
    with suppress(OSError):
        return any(is_image(entry.name) for folder in _folders(root) for entry in _entries(folder.path))
    return False


def is_image(name: str) -> bool:
    """Whether a file is called like an image."""
    return name[name.rfind(".") :].lower() in _SUFFIXES


class _Walk:
    """Collects directories, files and what is left out.

    Args:
        root: the folder.
        nested: whether classes may have folders in them.
    """

    def __init__(self, root: Path, *, nested: bool) -> None:
        self.root = root
        self.nested = nested
        self.directories: list[bytes] = []
        self.directory_facts: list[tuple[int, int, int]] = []
        self.left_out: dict[str, list[str]] = {}

    def leave_out(self, kind: str, entry: os.DirEntry[str]) -> None:
        self.left_out.setdefault(kind, []).append(os.path.relpath(entry.path, self.root))

    def enter(self, path: str | Path) -> list[os.DirEntry[str]]:
        """Notes a directory; returns what is in it and not hidden, by name."""
        self.directory_facts.append(facts(os.stat(path)))  # before it is listed: what comes later is noticed
        self.directories.append(os.fsencode(os.path.relpath(path, self.root)))
        return _entries(path)

    def images_of(self, path: str) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """``(directory, names, facts)`` of a directory and those in it."""
        number, inner, names, found = len(self.directories), [], [], array("q")
        for entry in self.enter(path):
            if not is_image(entry.name):
                if not entry.is_dir():
                    self.leave_out("files of other formats", entry)
                elif self.nested:
                    _refuse_link(entry)
                    inner.append(entry.path)
                else:
                    self.leave_out("folders inside a class", entry)
                continue
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
                _refuse_link(entry)
                raise DataError(f"{entry.path}: not a regular file; remove it")
            names.append(os.fsencode(entry.name))
            found.extend(facts(status))
        own = [(number, np.array(names), np.array(found, np.int64).reshape(-1, 3))] if names else []
        return own + [group for each in inner for group in self.images_of(each)]

    def files(self, folders: Iterable[os.DirEntry[str]]) -> Files:
        """The images of the folders of classes."""
        groups: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = {}
        for folder in folders:
            _refuse_link(folder)
            if found := self.images_of(folder.path):
                # The same letters may be stored as one character or as a letter and its accent.
                groups.setdefault(unicodedata.normalize("NFC", folder.name), []).extend(found)
            else:
                self.leave_out("classes without images", folder)
        names = sorted(groups)
        parts = [(label, *group) for label, name in enumerate(names) for group in groups[name]]
        lengths = [len(names) for _, _, names, _ in parts]
        return Files(
            tuple(names),
            np.repeat(np.array([label for label, *_ in parts], np.int32), lengths),
            np.repeat(np.array([number for _, number, *_ in parts], np.int32), lengths),
            np.concatenate([part[2] for part in parts]) if parts else np.zeros(0, "S1"),
            np.concatenate([part[3] for part in parts]) if parts else np.zeros((0, 3), np.int64),
        )


def scan(root: Path) -> Listing:
    """Lists the images of ``SPLIT/CLASS/**``, or of ``CLASS/*``, of which a part of every class is the test split.

    Raises:
        DataError: a folder cannot be listed, or contains links or what is no file.
    """
    whole = not has_splits(root)
    scanned, walk, splits = time.time_ns(), _Walk(root, nested=not whole), {}
    try:
        folders = {entry.name: entry for entry in walk.enter(root) if entry.is_dir() and entry.name != "decoded"}
        if not whole:
            stored = {split: stored_split(root, split, folders) for split in SPLIT_NAMES}
            for split, name in stored.items():
                if name is not None:
                    _refuse_link(folders[name])
                    splits[split] = walk.files(_classes(walk, folders.pop(name).path))
            walk.left_out["folders that are no split"] = list(folders)
            remark = ""
        else:
            splits = _divided(walk.files(folders.values()))
            remark = f"{root}: no train/ and test/ in it: a tenth of every class, by a fixed seed, is the test split"
    except OSError as error:
        raise DataError(f"{root}: cannot be listed ({one_line(error)})") from error
    found = [
        f"{len(names)} {kind} ({names[0]}{', ...' * (len(names) > 1)})"
        for kind, names in walk.left_out.items()
        if names
    ]
    if found:
        form = "SPLIT/CLASS/*" if not whole else "CLASS/*"
        remark = "; ".join(filter(None, [remark, f"{root}: not read: {'; '.join(found)}; images are {form}"]))
        remark += "|".join(SUFFIXES)
    return Listing(splits, np.array(walk.directories), np.array(walk.directory_facts, np.int64), scanned, remark)


def _classes(walk: _Walk, path: str) -> list[os.DirEntry[str]]:
    """The folders of a split's classes."""
    entries = walk.enter(path)
    for entry in entries:
        if not entry.is_dir():
            walk.leave_out("files outside of a class", entry)
    return [entry for entry in entries if entry.is_dir()]


def _divided(files: Files) -> dict[str, Files]:
    """Training and test images of a folder without splits: `TEST_SHARE` of every class with at least two images."""
    tested = np.zeros(len(files.names), bool)
    for label in range(len(files.class_names)):
        rows = np.flatnonzero(files.labels == label)
        count = max(round(TEST_SHARE * len(rows)), 1) if len(rows) > 1 else 0
        tested[rows[permutation(len(rows), 0, label)[:count]]] = True
    return {"train": files.at(~tested), "test": files.at(tested)}


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden, by name."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _folders(root: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in _entries(root) if entry.is_dir(follow_symlinks=False)]


def _refuse_link(entry: os.DirEntry[str]) -> None:
    """A data set must not read outside its folder, nor read a file twice under two labels."""
    if entry.is_symlink():
        raise DataError(f"{entry.path}: a symbolic link; put what it points to in its place")
