"""Folders of image files, ``PATH/train|test/<class>/<image>``."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from train.data.decoded import fingerprint
from train.data.decoding import DECODER, decode_image, image_header
from train.data.index import list_images
from train.data.kind import Kind, Records, Request, Shape, default_data_dir, no_split, say_once, user_path
from train.data.listing import Files, Listing, has_images, has_splits
from train.errors import DataError


def accepts(name: str, data_dir: Path | None) -> bool:
    """Whether the name is ``folder:PATH``, or the path of a folder with at least one of the splits in it."""
    return name.startswith("folder:") or has_splits(user_path(name))


def open_split(request: Request) -> Records:
    """Opens one split of an image folder.

    Class names are the sorted folder names of ``train`` (of all splits where there is no
    ``train``). The set is grayscale if every image of every split is, otherwise colour.

    Raises:
        DataError: nothing there, unreadable, classes that differ between splits, or symbolic links.
    """
    root, split, view = user_path(request.name.removeprefix("folder:")), request.split, request.view
    if not has_images(root):
        fault = "no image folder" if root.is_dir() else "no such folder"
        raise DataError(f"{root}: {fault}; it needs train/CLASS/ and test/CLASS/ with images, or CLASS/ alone")
    place, cache = fingerprint([str(root.resolve())])[:8], (request.data_dir or default_data_dir()) / "decoded"
    # A folder of data that an untrusted file chose may hold any index.
    listing = list_images(root, cache / f"{root.name}-{place}.index.npz" if request.write else None)
    if listing.remark:
        say_once(listing.remark)
    files = listing.splits.get(split)
    if files is None or not len(files.names):
        raise no_split(root, split, [name for name, found in listing.splits.items() if len(found.names)])
    class_names = _class_names(root, listing)
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers.get(name, -1) for name in files.class_names], np.int32)[files.labels]

    def decode(indices: np.ndarray, images: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        shape = images.shape[1:]
        for position, index in enumerate(indices):
            path, drawn = listing.path(root, split, index), None if draws is None else draws[position].tolist()
            images[position] = decode_image(path, str(path), shape=shape, view=view, draws=drawn, upright=True)
        found: np.ndarray = labels[indices]
        return found

    key = fingerprint([str(root.resolve()), split, *_digests(listing), *([DECODER] if view.size else [])])
    return Records(
        name=f"{root}, split {split}",
        size=len(files.names),
        class_names=class_names,
        probe=functools.partial(_image_shape, root, listing, view.size),
        decode=decode,
        copy=cache / f"{root.name}-{place}-{split}-{view.label}-{key}",
        files=fingerprint([class_names, _digest(labels, files.names, files.facts[:, 0])]),
        labels=lambda indices: labels[indices],
    )


KIND = Kind(accepts, open_split)


def _digests(listing: Listing) -> Iterable[str]:
    """Hashes that change with the files of every split."""
    yield _digest(listing.directories)
    for split, files in listing.splits.items():
        yield f"{split} {files.class_names} " + _digest(files.labels, files.directories, files.names, files.facts)


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _class_names(root: Path, listing: Listing) -> tuple[str, ...]:
    """The sorted classes of ``train``; a class that only another split has is an error."""
    classes = {split: _present(files) for split, files in listing.splits.items()}
    known = classes.get("train") or set().union(*classes.values())
    for split, names in classes.items():
        if extra := sorted(names - known):
            files = listing.splits[split]
            first = int(np.flatnonzero(files.labels == files.class_names.index(extra[0]))[0])
            raise DataError(f"{listing.path(root, split, first).parent}: this class is not in train; move it")
    return tuple(sorted(known))


def _present(files: Files) -> set[str]:
    return {files.class_names[label] for label in np.unique(files.labels)}


def _image_shape(root: Path, listing: Listing, image_size: int | None, max_unreadable: int) -> Shape:
    """The first image's size, and three channels if any image has colour."""
    sizes, grayscale = [], True
    every = ((split, index) for split, files in listing.splits.items() for index in range(len(files.names)))
    for split, index in every:
        path = listing.path(root, split, index)
        try:
            size, is_gray = image_header(path, str(path), upright=True)
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
