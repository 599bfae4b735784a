"""Folders of image files, ``PATH/train|test/<class>/<image>``."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.data.decoded import facts, fingerprint
from train.data.decoding import decode_image, image_header
from train.data.kind import Arrays, Kind, Records, Request, Shape, default_data_dir, no_split, user_path
from train.errors import DataError, one_line

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
SPLITS = ("train", "validation", "test")


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
    root, split, image_size = user_path(request.name.removeprefix("folder:")), request.split, request.image_size
    if not _has_splits(root):
        raise DataError(f"{root}: no image folder; it needs train/CLASS/ and test/CLASS/ with images")
    try:
        splits = {name: _scan(root, name) for name in SPLITS if (root / name).is_dir()}
    except OSError as error:
        raise DataError(f"{root}: cannot be listed ({one_line(error)})") from error
    files = splits.get(split, [])
    if not files:
        raise no_split(root, split, [name for name, found in splits.items() if found])
    class_names = _class_names(root, splits)
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers[file.class_name] for file in files], np.int32)
    every = [file for found in splits.values() for file in found]

    def decode(indices: np.ndarray, shape: Shape) -> Arrays:
        paths = [root / files[index].path for index in indices]
        images = [decode_image(path, str(path), shape=shape, image_size=image_size) for path in paths]
        return np.stack(images), labels[indices]

    key = fingerprint([str(root.resolve()), split, *every])
    place = fingerprint([str(root.resolve())])[:8]
    copy = f"{root.name}-{place}-{split}-{image_size or 'original'}-{key}"
    return Records(
        name=f"{root}, split {split}",
        size=len(files),
        class_names=class_names,
        probe=functools.partial(_image_shape, root, every, image_size),
        decode=decode,
        copy=(request.data_dir or default_data_dir()) / "decoded" / copy,
        files=fingerprint((file.path.partition("/")[2], file.facts[0]) for file in files),
    )


KIND = Kind(accepts, open_split)


def _has_splits(root: Path) -> bool:
    return any((root / split).is_dir() for split in SPLITS)


def _scan(root: Path, split: str) -> list[_File]:
    """Lists a split's images by class and name; ignores hidden files and those that are no images."""
    files = []
    with os.scandir(root) as entries:
        _refuse_link(next(entry for entry in entries if entry.name == split))
    with os.scandir(root / split) as entries:
        folders = [entry for entry in entries if entry.is_dir() and _visible(entry)]
    for folder in sorted(folders, key=lambda entry: entry.name):
        _refuse_link(folder)
        class_name = folder.name
        with os.scandir(root / split / class_name) as entries:
            images = [entry for entry in entries if _visible(entry) and _is_image(entry.name)]
        for entry in sorted(images, key=lambda entry: entry.name):
            _refuse_link(entry)
            if not entry.is_file(follow_symlinks=False):  # reading a pipe would block
                raise DataError(f"{entry.path}: not a regular file; remove it")
            files.append(_File(f"{split}/{class_name}/{entry.name}", class_name, facts(entry.stat())))
    return files


def _class_names(root: Path, splits: dict[str, list[_File]]) -> tuple[str, ...]:
    """The sorted classes of ``train``; a class that only another split has is an error."""
    classes = {split: {file.class_name for file in files} for split, files in splits.items()}
    known = classes.get("train") or set().union(*classes.values())
    for split, names in classes.items():
        if extra := sorted(names - known):
            raise DataError(f"{root / split / extra[0]}: this class is not in train; move it")
    return tuple(sorted(known))


def _image_shape(root: Path, files: list[_File], image_size: int | None, max_unreadable: int) -> Shape:
    """The first image's size, and three channels if any image has colour."""
    sizes, grayscale = [], True
    for file in files:
        try:
            size, is_gray = image_header(root / file.path, str(root / file.path))
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


def _visible(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".")


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES
