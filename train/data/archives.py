"""Arrays in an ``.npz`` file from anybody: checked by their headers before any memory is taken.

A zip file can claim anything: its directory is read in one bounded piece, only the members with a known name are
opened, and an array is allocated only where name, header and directory agree on a size below the limit. Nothing is
unpickled.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from train.data.errors import DataError, NoSplit, one_line
from train.data.metadata import MAX_CLASSES
from train.data.storage import Arrays

_SPLITS = ("train", "validation", "test")
_NAMES = ("images", "labels", "class_names", *(f"{split}_{kind}" for split in _SPLITS for kind in ("images", "labels")))
_KEYS = "images and labels, or train_images, train_labels, test_images and test_labels"
_MAX_READ = 2**22  # bytes of zip directory, ten thousands of members; data comes in smaller pieces
_MAX_HEADER = 2**16
_MAX_NAMES = 2**24


class _Member(NamedTuple):
    """One array of the file, not read yet."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _BoundedFile(io.FileIO):
    """A file that refuses to be read in large pieces, as a zip file's directory is."""

    def read(self, size: int | None = -1) -> bytes:
        whole = size is None or size < 0
        data = super().read(_MAX_READ + 1 if whole or size > _MAX_READ else size)
        if len(data) > _MAX_READ:
            raise ValueError("its directory of members is too large")
        return data


def npz_arrays(path: Path, split: str, memory_limit: int) -> tuple[Arrays, tuple[str, ...]]:
    """Reads one split of an ``.npz`` file.

    ``images`` and ``labels`` without a prefix are the ``train`` split. An optional
    ``class_names`` array of strings names the classes; without it there are as many as the
    largest training label says.

    Args:
        path: the file.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        memory_limit: the most bytes that images and labels may take together.

    Returns:
        ``(images uint8[n, h, w, c], labels int32[n])`` and the class names; labels are not compared with these.

    Raises:
        DataError: damaged, of objects, with wrong keys, shapes or dtypes, too large or empty.
    """
    try:
        with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            members = _members(path, archive)
            keys = _keys(path, archive, members, split)
            _check(path, members, keys, memory_limit)
            images, labels = (_read(archive, members[key]) for key in keys)
            class_names = _class_names(path, archive, members, keys[1])
    except DataError:
        raise
    except Exception as error:  # damaged archives raise zip, zlib, value and end-of-file errors
        raise DataError(
            f"{path}: not a readable .npz file ({one_line(error)}); write it again with numpy.savez"
        ) from error
    images = images[..., None] if images.ndim == 3 else images
    narrow = np.full(len(labels), -1, np.int32)  # a cast would let labels outside come back in
    usable = (labels >= 0) & (labels < MAX_CLASSES)
    narrow[usable] = labels[usable]
    return (np.ascontiguousarray(images), narrow), class_names


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, _Member]:
    """The headers of the arrays with a name that means something."""
    members: dict[str, _Member] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name not in _NAMES:
            continue
        if name in members:
            raise DataError(f"{path}: contains {name} twice; write it again with numpy.savez")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{path}: {name} is compressed in a way that numpy.savez is not; write it again")
        with archive.open(info) as file:
            shape, dtype, offset = _header(path, name, file)
        member = members[name] = _Member(info, shape, dtype)
        if member.bytes != (stored := info.file_size - offset):
            raise DataError(f"{path}: {name} claims {member.bytes} bytes but has {stored}; write it again")
    return members


def _header(path: Path, name: str, file: BinaryIO) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape and dtype of an array, and where its data begins."""
    start = file.read(12)
    version = tuple(start[6:8])
    if start[:6] != np.lib.format.MAGIC_PREFIX or version not in ((1, 0), (2, 0)):
        raise DataError(f"{path}: {name} is not an array that numpy.savez writes; write it again")
    # The length comes first: NumPy reads a header of any length before it looks at it.
    (length,) = struct.unpack("<H", start[8:10]) if version == (1, 0) else struct.unpack("<I", start[8:12])
    if length > _MAX_HEADER:
        raise DataError(f"{path}: {name} has a header of {length} bytes; write it again with numpy.savez")
    offset = (10 if version == (1, 0) else 12) + length
    header = io.BytesIO(start[8:] + file.read(max(offset - 12, 0)))
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(header)
    if dtype.hasobject:
        raise DataError(f"{path}: {name} is an array of Python objects, which can run code; save plain numbers")
    if any(length < 0 for length in shape):
        raise DataError(f"{path}: {name} has the shape {shape}; write it again")
    return shape, dtype, offset


def _read(archive: zipfile.ZipFile, member: _Member) -> np.ndarray:
    with archive.open(member.info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _keys(path: Path, archive: zipfile.ZipFile, members: dict[str, _Member], split: str) -> tuple[str, str]:
    """The names of a split's two arrays."""
    prefixed = (f"{split}_images", f"{split}_labels")
    plain = ("images", "labels")
    for keys in [prefixed, plain] if split == "train" else [prefixed]:
        if all(key in members for key in keys):
            return keys
    names = sorted(name.removesuffix(".npy")[:40] for name in archive.namelist()[:10])
    raise NoSplit(f"{path}: no split {split!r} in the keys {', '.join(names) or 'none'}; expected {_KEYS}")


def _check(path: Path, members: dict[str, _Member], keys: tuple[str, str], memory_limit: int) -> None:
    """Everything that shapes and dtypes can tell, before an array is read."""
    images, labels = (members[key] for key in keys)
    shape, where = images.shape, f"{path}, {keys[0]}"
    if images.dtype != np.uint8:
        raise DataError(f"{where}: {images.dtype} images, expected uint8 in 0..255; scale and round them")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[-1] not in (1, 3, 4)):
        raise DataError(
            f"{where}: shape {shape}, expected (n, h, w) or (n, h, w, c) with c = 1, 3 or 4; "
            "transpose it, channels go last"
        )
    if not math.prod(shape):
        raise DataError(f"{where}: shape {shape} is empty; add examples")
    for name, member in members.items():
        if name.endswith("labels") and (member.dtype.kind not in "iu" or len(member.shape) != 1):
            raise DataError(f"{path}, {name}: {member.dtype} of shape {member.shape}, expected integers, one an image")
    if labels.shape != shape[:1]:
        raise DataError(f"{path}, {keys[1]}: shape {labels.shape}, expected {shape[:1]}, one an image")
    needed = images.bytes + sum(member.bytes for name, member in members.items() if name.endswith("labels"))
    if needed > memory_limit:
        raise DataError(
            f"{where}: {needed} bytes with labels are over the limit of {memory_limit}; store the images as files in a "
            "folder"
        )


def _class_names(path: Path, archive: zipfile.ZipFile, members: dict[str, _Member], labels_key: str) -> tuple[str, ...]:
    """The names in the file, or the numbers up to the largest training label."""
    if "class_names" in members:
        member = members["class_names"]
        if len(member.shape) != 1 or member.dtype.kind != "U" or member.bytes > _MAX_NAMES:
            raise DataError(f"{path}, class_names: {member.dtype} of shape {member.shape}, expected strings (n,)")
        names = tuple(_read(archive, member).tolist())
        count, key = len(names), "class_names"
    else:
        key = next(key for key in ("train_labels", "labels", labels_key) if key in members)
        count = max(int(_read(archive, members[key]).max(initial=0)), 0) + 1
        names = tuple(str(label) for label in range(min(count, MAX_CLASSES)))
    if count > MAX_CLASSES:
        raise DataError(f"{path}, {key}: {count} classes are over the limit of {MAX_CLASSES}; number them from 0")
    return names
