"""Arrays in an ``.npz`` file, checked by their headers before any memory is taken."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

from train.data.errors import DataError, one_line
from train.data.storage import Arrays, check_labels

_KEYS = "images and labels, or train_images, train_labels, test_images and test_labels"


def npz_arrays(path: Path, split: str, memory_limit: int) -> tuple[Arrays, tuple[str, ...]]:
    """Reads one split of an ``.npz`` file.

    ``images`` and ``labels`` without a prefix are the ``train`` split. An optional
    ``class_names`` array of strings names the classes; without it there are as many as the
    largest training label says.

    Args:
        path: the file.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        memory_limit: the most bytes that the images may take.

    Returns:
        ``(images uint8[n, h, w, c], labels int32[n])`` and the class names.

    Raises:
        DataError: damaged, of objects, with wrong keys, shapes or dtypes, too large or empty.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {name.removesuffix(".npy"): _header(path, archive, name) for name in archive.namelist()}
        keys = _keys(path, headers, split)
        _check_headers(path, headers, keys, memory_limit)
        with np.load(path, allow_pickle=False) as archive:
            images, labels = (archive[key] for key in keys)
            class_names = _class_names(path, archive, headers, keys[1])
    except DataError:
        raise
    except Exception as error:  # damaged archives raise zip, zlib, value and end-of-file errors
        raise DataError(
            f"{path}: not a readable .npz file ({one_line(error)}); write it again with numpy.savez"
        ) from error
    images = images[..., None] if images.ndim == 3 else images
    check_labels(labels, len(class_names), f"{path}, {keys[1]}")
    return (np.ascontiguousarray(images), labels.astype(np.int32)), class_names


def _header(path: Path, archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one member, and whether its claimed size is the member's real one."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if reader is None:
            raise DataError(f"{path}: {name} has format {version}; write it with numpy.savez")
        shape, _, dtype = reader(file)
        if dtype.hasobject:
            raise DataError(f"{path}: {name} is an array of Python objects, which can run code; save plain numbers")
        claimed = math.prod(shape) * dtype.itemsize
        stored = archive.getinfo(name).file_size - file.tell()
    if claimed != stored:
        raise DataError(f"{path}: {name} claims {claimed} bytes but has {stored}; write it again")
    return shape, dtype


def _keys(path: Path, headers: dict, split: str) -> tuple[str, str]:
    """The names of a split's two arrays."""
    prefixed = (f"{split}_images", f"{split}_labels")
    plain = ("images", "labels")
    for keys in [prefixed, plain] if split == "train" else [prefixed]:
        if all(key in headers for key in keys):
            return keys
    found = ", ".join(sorted(headers)) or "none"
    raise DataError(f"{path}: no split {split!r} in the keys {found}; expected {_KEYS}")


def _check_headers(path: Path, headers: dict, keys: tuple[str, str], memory_limit: int) -> None:
    """Everything that shapes and dtypes can tell, before an array is read."""
    (shape, dtype), (label_shape, label_dtype) = (headers[key] for key in keys)
    where = f"{path}, {keys[0]}"
    if dtype != np.uint8:
        raise DataError(f"{where}: {dtype} images, expected uint8 in 0..255; scale and round them")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[-1] not in (1, 3, 4)):
        raise DataError(
            f"{where}: shape {shape}, expected (n, h, w) or (n, h, w, c) with c = 1, 3 or 4; "
            "transpose it, channels go last"
        )
    if not math.prod(shape):
        raise DataError(f"{where}: shape {shape} is empty; add examples")
    if math.prod(shape) > memory_limit:
        raise DataError(
            f"{where}: {math.prod(shape)} bytes are over the limit of {memory_limit}; raise the "
            "limit or store the images as files in a folder"
        )
    if label_dtype.kind not in "iu" or label_shape != shape[:1]:
        raise DataError(
            f"{path}, {keys[1]}: {label_dtype} of shape {label_shape}, expected integers of shape "
            f"{shape[:1]}, one an image"
        )


def _class_names(path: Path, archive, headers: dict, labels_key: str) -> tuple[str, ...]:
    """The names in the file, or the numbers up to the largest training label."""
    if "class_names" in headers:
        shape, dtype = headers["class_names"]
        if len(shape) != 1 or dtype.kind != "U":
            raise DataError(f"{path}, class_names: {dtype} of shape {shape}, expected strings (n,)")
        return tuple(archive["class_names"].tolist())
    key = next(key for key in ("train_labels", "labels", labels_key) if key in headers)
    return tuple(str(label) for label in range(int(archive[key].max(initial=0)) + 1))
