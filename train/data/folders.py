"""Folders of image files, ``PATH/train|test/<class>/<image>``."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.data.errors import DataError, no_split, one_line
from train.data.images import decode_image, image_header
from train.data.records import Records, default_data_dir
from train.data.storage import Arrays, fingerprint

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
SPLITS = ("train", "validation", "test")


class _File(NamedTuple):
    """One image: its path below the root, its class, and what changes when it does."""

    path: str
    class_name: str
    size: int
    modified: int


def is_image_folder(path: Path) -> bool:
    """Whether the path is a folder with at least one of the splits in it."""
    return any((path / split).is_dir() for split in SPLITS)


def folder_records(root: Path, split: str, *, data_dir: Path | None, image_size: int | None) -> Records:
    """Opens one split of an image folder.

    Class names are the sorted folder names of ``train`` (of all splits where there is no
    ``train``). The set is grayscale if every image of every split is, otherwise colour.

    Args:
        root: the folder that contains the splits.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        data_dir: where the decoded copy is kept; None means the default folder.
        image_size: resizes to this height and width in pixels.

    Raises:
        DataError: nothing there, unreadable, classes that disagree, or symbolic links.
    """
    if not is_image_folder(root):
        raise DataError(f"{root}: no image folder; it needs train/CLASS/ and test/CLASS/ with images")
    try:
        splits = {name: _scan(root, name) for name in SPLITS if (root / name).is_dir()}
    except OSError as error:
        raise DataError(f"{root}: cannot be listed ({one_line(error)})") from error
    files = splits.get(split, [])
    if not files:
        raise no_split(root, split, [name for name, found in splits.items() if found])
    class_names = _class_names(root, splits)
    every = [file for found in splits.values() for file in found]
    labels = np.array([class_names.index(file.class_name) for file in files], np.int32)

    def decode(indices: np.ndarray, shape: tuple[int, int, int]) -> Arrays:
        images = [_decode(root, files[index].path, shape, image_size) for index in indices]
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
        cache=(data_dir or default_data_dir()) / "decoded" / copy,
    )


def _scan(root: Path, split: str) -> list[_File]:
    """Lists a split's images by class and name; hidden and other files do not count."""
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
            if not entry.is_file(follow_symlinks=False):  # reading a pipe would wait for ever
                raise DataError(f"{entry.path}: not a regular file; remove it")
            facts = entry.stat()
            path = f"{split}/{class_name}/{entry.name}"
            files.append(_File(path, class_name, facts.st_size, facts.st_mtime_ns))
    return files


def _class_names(root: Path, splits: dict[str, list[_File]]) -> tuple[str, ...]:
    """The sorted classes of ``train``; a class that only another split has is a mistake."""
    classes = {split: {file.class_name for file in files} for split, files in splits.items()}
    known = classes.get("train") or set().union(*classes.values())
    for split, names in classes.items():
        if extra := sorted(names - known):
            raise DataError(f"{root / split / extra[0]}: this class is not in train; move it")
    return tuple(sorted(known))


def _image_shape(root: Path, files: list[_File], image_size: int | None, max_corrupt: int) -> tuple[int, int, int]:
    """The first image's size, and three channels as soon as any image has colour."""
    sizes, grayscale = [], True
    for file in files:
        try:
            size, is_gray = image_header(root / file.path, str(root / file.path))
        except DataError:  # decoding will name it; the splits of the folder count apart
            if not max_corrupt:
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


def _decode(root: Path, path: str, shape, image_size: int | None) -> np.ndarray:
    """Decodes one file and compares its size with the set's."""
    image = decode_image(root / path, str(root / path), channels=shape[-1], image_size=image_size)
    if image.shape != shape:
        raise DataError(
            f"{root / path}: {image.shape[0]} x {image.shape[1]} pixels (height x width), the "
            f"first image has {shape[0]} x {shape[1]}; give an image size to resize to"
        )
    return image


def _refuse_link(entry: os.DirEntry) -> None:
    """A data set must not read outside its folder, nor any file twice under two labels."""
    if entry.is_symlink():
        raise DataError(f"{entry.path}: a symbolic link; put what it points to in its place")


def _visible(entry: os.DirEntry) -> bool:
    return not entry.name.startswith(".")


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES
