"""Folders of image files, ``PATH/train|test/<class>/<image>``."""

from __future__ import annotations

import functools
import os
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.data.decoded import facts, fingerprint
from train.data.decoding import DECODER, decode_image, image_header
from train.data.kind import (
    SPLIT_NAMES,
    Arrays,
    Kind,
    Records,
    Request,
    Shape,
    default_data_dir,
    no_split,
    say_once,
    stored_split,
    user_path,
)
from train.errors import DataError, one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_MARKS = ("train", "validation", "val", "valid", "test")  # not dev, or the root of the file system were a data set


class _File(NamedTuple):
    """One image: its path below the root, its class, and the facts that change with its content."""

    path: str
    class_name: str
    facts: tuple[int, int, int]


def accepts(name: str, data_dir: Path | None) -> bool:
    """Whether the name is ``folder:PATH``, or the path of a folder with at least one of the splits in it."""
    return name.startswith("folder:") or _has_splits(user_path(name))


def open_split(request: Request) -> Records:
    """Opens one split of an image folder.

    Class names are the sorted folder names of ``train`` (of all splits where there is no
    ``train``). The set is grayscale if every image of every split is, otherwise colour.

    Raises:
        DataError: nothing there, unreadable, classes that differ between splits, or symbolic links.
    """
    root, split, view = user_path(request.name.removeprefix("folder:")), request.split, request.view
    if not _has_splits(root):
        raise DataError(f"{root}: no image folder; it needs train/CLASS/ and test/CLASS/ with images")
    splits = _scan(root)
    files = splits.get(split, [])
    if not files:
        raise no_split(root, split, [name for name, found in splits.items() if found])
    class_names = _class_names(root, splits)
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers[file.class_name] for file in files], np.int32)
    every = [file for found in splits.values() for file in found]

    def decode(indices: np.ndarray, shape: Shape, draws: np.ndarray | None) -> Arrays:
        images = np.empty((len(indices), *shape), np.uint8)
        for position, index in enumerate(indices):
            path, drawn = root / files[index].path, None if draws is None else draws[position].tolist()
            images[position] = decode_image(path, str(path), shape=shape, view=view, draws=drawn, upright=True)
        return images, labels[indices]

    key = fingerprint([str(root.resolve()), split, *every, *([DECODER] if view.size else [])])
    place = fingerprint([str(root.resolve())])[:8]
    copy = f"{root.name}-{place}-{split}-{view.label}-{key}"
    return Records(
        name=f"{root}, split {split}",
        size=len(files),
        class_names=class_names,
        probe=functools.partial(_image_shape, root, every, view.size),
        decode=decode,
        copy=(request.data_dir or default_data_dir()) / "decoded" / copy,
        files=fingerprint((file.class_name, os.path.basename(file.path), file.facts[0]) for file in files),
        labels=lambda indices: labels[indices],
    )


KIND = Kind(accepts, open_split)


def _has_splits(root: Path) -> bool:
    return any((root / split).is_dir() for split in _MARKS)


def _scan(root: Path) -> dict[str, list[_File]]:
    """Lists the images of every split, and says once what is left out; hidden files are ignored.

    Raises:
        DataError: a folder cannot be listed, or contains links or what is no file.
    """
    left_out: dict[str, list[str]] = {}
    try:
        folders = {entry.name: entry for entry in _entries(root) if entry.is_dir()}
        stored = {split: stored_split(root, split, folders) for split in SPLIT_NAMES}
        splits = {}
        for split, name in stored.items():
            if name is not None:
                _refuse_link(folders.pop(name))
                splits[split] = _scan_split(root, name, left_out)
    except OSError as error:
        raise DataError(f"{root}: cannot be listed ({one_line(error)})") from error
    left_out["folders that are no split"] = [name for name in folders if name != "decoded"]
    found = [
        f"{len(names)} {kind} ({names[0]}{', ...' * (len(names) > 1)})" for kind, names in left_out.items() if names
    ]
    if found:
        say_once(f"{root}: not read: {'; '.join(found)}; images are SPLIT/CLASS/*{'|'.join(SUFFIXES)}")
    return splits


def _scan_split(root: Path, split: str, left_out: dict[str, list[str]]) -> list[_File]:
    """Lists a split's images by class and name, and adds what is left out to lists by kind."""

    def leave_out(kind: str, entry: os.DirEntry[str]) -> None:
        left_out.setdefault(kind, []).append(os.path.relpath(entry.path, root))

    files: list[_File] = []
    for folder in _entries(root / split):
        if not folder.is_dir():
            leave_out("files outside of a class", folder)
            continue
        _refuse_link(folder)
        # The same letters may be stored as one character or as a letter and its accent.
        class_name = unicodedata.normalize("NFC", folder.name)
        count = len(files)
        for entry in _entries(folder.path):
            if not _is_image(entry.name):
                leave_out("folders inside a class" if entry.is_dir() else "files of other formats", entry)
                continue
            _refuse_link(entry)
            if not entry.is_file(follow_symlinks=False):  # reading a pipe would block
                raise DataError(f"{entry.path}: not a regular file; remove it")
            files.append(_File(f"{split}/{folder.name}/{entry.name}", class_name, facts(entry.stat())))
        if len(files) == count:
            leave_out("classes without images", folder)
    return sorted(files, key=lambda file: (file.class_name, file.path))


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden, by name."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _class_names(root: Path, splits: dict[str, list[_File]]) -> tuple[str, ...]:
    """The sorted classes of ``train``; a class that only another split has is an error."""
    classes = {split: {file.class_name for file in files} for split, files in splits.items()}
    known = classes.get("train") or set().union(*classes.values())
    for split, names in classes.items():
        if extra := sorted(names - known):
            example = next(file.path for file in splits[split] if file.class_name == extra[0])
            raise DataError(f"{(root / example).parent}: this class is not in train; move it")
    return tuple(sorted(known))


def _image_shape(root: Path, files: list[_File], image_size: int | None, max_unreadable: int) -> Shape:
    """The first image's size, and three channels if any image has colour."""
    sizes, grayscale = [], True
    for file in files:
        try:
            size, is_gray = image_header(root / file.path, str(root / file.path), upright=True)
        except DataError:  # Decoding names and counts it, for its own split; here are the files of all splits.
            if not max_unreadable:
                raise
            continue
        sizes.append(size)
        grayscale = grayscale and is_gray
        if not grayscale:
            break
    if not sizes:
        raise DataError(f"{root}: no image in it can be decoded; replace them")
    height, width = sizes[0]
    return image_size or height, image_size or width, 1 if grayscale else 3


def _refuse_link(entry: os.DirEntry[str]) -> None:
    """A data set must not read outside its folder, nor read a file twice under two labels."""
    if entry.is_symlink():
        raise DataError(f"{entry.path}: a symbolic link; put what it points to in its place")


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES
