"""Arrays in an untrusted ``.npz`` file: their headers are checked before any memory is allocated.

A zip file can claim anything. Its directory is read in one bounded piece, only members with a known name are opened,
and an array is allocated only if header and directory agree on a size below the limit. Nothing is unpickled.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from train.data.kind import MAX_CLASSES, SPLIT_NAMES, InMemory, Kind, Request, user_path
from train.errors import DataError, NoSplit, one_line

_KEYS: dict[str, list[tuple[str, str]]] = {
    split: [pair for name in names for pair in ((f"{name}_images", f"{name}_labels"), (f"x_{name}", f"y_{name}"))]
    for split, names in SPLIT_NAMES.items()
}
"""What files call the images and labels of each split."""

_KEYS["train"].append(("images", "labels"))
_LABELS = {labels for pairs in _KEYS.values() for _, labels in pairs}
_NAMES = {name for pairs in _KEYS.values() for pair in pairs for name in pair} | {"class_names"}
_EXPECTED = "images and labels, or train_images, train_labels, test_images and test_labels, or x_train, y_train, ..."
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
        data = super().read(_MAX_READ + 1 if size is None or not 0 <= size <= _MAX_READ else size)
        if len(data) > _MAX_READ:
            raise ValueError("its directory of members is too large")
        return data


def accepts(name: str, data_dir: Path | None) -> bool:
    """Whether the name is the path of an ``.npz`` file."""
    return user_path(name).suffix == ".npz" and not name.startswith("folder:")


def open_split(request: Request) -> InMemory:
    """Reads one split of an ``.npz`` file.

    The keys are ``train_images`` and ``train_labels``, or ``x_train`` and ``y_train``, likewise for ``test`` and
    ``validation``, ``val``, ``valid`` or ``dev``; ``images`` and ``labels`` are the ``train`` split. An optional
    ``class_names`` array of strings names the classes; without it there are as many as the
    largest training label says. Labels may have the shape ``[n, 1]``.

    Raises:
        DataError: damaged, of objects, with wrong keys, shapes or dtypes, too large or empty.
    """
    path, size = user_path(request.name), request.view.size
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the path of an .npz file")
    try:
        with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            members = _members(path, archive)
            keys = _keys(path, archive, members, request.split)
            _check(path, members, keys, request.memory_limit)
            images, labels = (_read(archive, members[key]) for key in keys)
            labels = labels.reshape(-1)
            class_names = _class_names(path, archive, members, keys[1])
    except DataError:
        raise
    except Exception as error:  # damaged archives raise zip, zlib, value and end-of-file errors
        raise DataError(
            f"{path}: not a readable .npz file ({one_line(error)}); write it again with numpy.savez"
        ) from error
    height, width = images.shape[1:3]
    if size not in (None, height) or size not in (None, width):
        raise DataError(
            f"{path}: images are {height} x {width} and arrays are not resized to {size}; use the augmentation's resize"
        )
    images = images[..., None] if images.ndim == 3 else images
    narrow = np.full(len(labels), -1, np.int32)  # a cast could wrap labels outside the range back into it
    usable = (labels >= 0) & (labels < MAX_CLASSES)
    narrow[usable] = labels[usable]
    return InMemory(f"{path}, split {request.split}", class_names, (np.ascontiguousarray(images), narrow))


KIND = Kind(accepts, open_split)


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, _Member]:
    """The headers of the arrays whose names are known; the others stay unread."""
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


def _header(path: Path, name: str, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, int]:
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
    found = [keys for keys in _KEYS.get(split, []) if all(key in members for key in keys)]
    if len(found) > 1:
        both = " and ".join(images for images, _ in found)
        raise DataError(f"{path}: {both} both mean the {split} split; leave one out")
    if found:
        return found[0]
    names = sorted(name.removesuffix(".npy")[:40] for name in archive.namelist()[:10])
    raise NoSplit(f"{path}: no split {split!r} in the keys {', '.join(names) or 'none'}; expected {_EXPECTED}")


def _check(path: Path, members: dict[str, _Member], keys: tuple[str, str], memory_limit: int) -> None:
    """Checks shapes, dtypes and sizes before an array is read."""
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
        if name in _LABELS and (member.dtype.kind not in "iu" or member.shape[1:] not in ((), (1,))):
            raise DataError(f"{path}, {name}: {member.dtype} of shape {member.shape}, expected integers, one an image")
    if labels.shape[:1] != shape[:1]:
        raise DataError(f"{path}, {keys[1]}: shape {labels.shape}, expected {shape[:1]}, one an image")
    needed = images.bytes + sum(member.bytes for name, member in members.items() if name in _LABELS)
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
        train = [labels for _, labels in _KEYS["train"]]
        key = next(key for key in (*train, labels_key) if key in members)
        count = max(int(_read(archive, members[key]).max(initial=0)), 0) + 1
        names = tuple(str(label) for label in range(min(count, MAX_CLASSES)))
    if count > MAX_CLASSES:
        raise DataError(f"{path}, {key}: {count} classes are over the limit of {MAX_CLASSES}; number them from 0")
    return names
