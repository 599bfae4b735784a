"""Labelled 8-bit images by name: ``load("cifar10", split="train")``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from train.data.archives import npz_arrays
from train.data.corrupt import Corrupt, tolerant, with_substitutes
from train.data.errors import DataError, user_path
from train.data.folders import folder_records, is_image_folder
from train.data.images import quiet_decoding
from train.data.order import permutation
from train.data.prepared import is_known, tfds_records
from train.data.records import Records
from train.data.storage import (
    Arrays,
    Fetch,
    check_labels,
    decode_all,
    from_arrays,
    labelled,
    per_batch,
    read_cache,
    write_cache,
)

MEMORY_LIMIT = 2 << 30
"""Splits of up to so many decoded bytes are kept in one array."""


@dataclass(frozen=True)
class Source:
    """Labelled images with random access.

    Attributes:
        name: the data set and split, for messages.
        size: the number of examples, also ``len(source)``.
        image_shape: ``(h, w, c)``.
        class_names: one name for every label.
        read: ``indices int[n] -> (images uint8[n, h, w, c], labels int32[n])``, thread-safe; arrays of the caller's
            own, never written to again, for a step that was only begun may read them.
        corrupt: ``indices int[n] -> bool[n]``, which examples were read before and could not be: `read` gave others
            in their place. Evaluation leaves them out.
        in_memory: whether `read` only copies, out of memory or of a mapped file, so that nobody need read ahead.
    """

    name: str
    size: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    read: Fetch = field(repr=False)
    corrupt: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    in_memory: bool

    def __len__(self) -> int:
        return self.size

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    split: str = "train",
    holdout: float = 0.0,
    image_size: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
    max_corrupt: int = 0,
) -> Source:
    """Opens one split of a data set.

    What ``name`` may be:

    * ``"mnist5k"`` or ``"digits"``: contained in a Python package, prepared on first use;
    * a TFDS set such as ``"cifar10"``, ``NAME[/CONFIG][:VERSION]``, prepared as array_record;
    * ``"folder:PATH"`` or a folder with ``train|validation|test/<class>/*.png|jpg|jpeg|bmp|webp``;
    * an ``.npz`` file with ``images`` and ``labels``, or ``train_images``, ``train_labels``,
      ``test_images`` and ``test_labels``.

    The first start decodes everything that fits into ``memory_limit`` and keeps a copy; later
    starts map that copy. Larger sets are decoded batch by batch.

    Args:
        name: the data set.
        data_dir: where prepared sets lie; None means ``$DEFORMREG_DATA`` or
            ``~/.cache/deformreg/data``, then TFDS's own folder.
        split: ``"train"``, ``"test"`` or ``"validation"``.
        holdout: the fraction of ``train``, in [0, 1), that is cut off as ``"validation"``. The cut
            is always the same one, whatever the training seed, so that runs can be compared.
        image_size: resizes images to this height and width, in pixels, when they are decoded.
        memory_limit: the most bytes a decoded split may take in memory.
        max_corrupt: unreadable examples that are skipped, each with a line on standard error, before one raises.

    Returns:
        The split as a ``Source``.

    Raises:
        DataError: one line with the culprit and the remedy.

    Example:
        >>> train = load("digits", split="train", holdout=0.1)  # doctest: +SKIP
        >>> images, labels = train.read(np.arange(128))         # doctest: +SKIP
    """
    if not 0.0 <= holdout < 1.0:
        raise DataError(f"holdout {holdout} is not a fraction in [0, 1); give for example 0.1")
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size {image_size} is not a number of pixels; give 1 or more")
    data_dir = None if data_dir is None else user_path(data_dir)
    cut = bool(holdout) and split in ("train", "validation")
    source = _open(name, data_dir, "train" if cut else split, image_size, memory_limit, Corrupt(max_corrupt))
    if cut:
        source = hold_out(source, holdout)[split == "validation"]
    if not max_corrupt:
        return source
    # Last, so that a substitute comes from the same side of the cut.
    return replace(source, read=with_substitutes(source.read, source.corrupt, source.size, source.name))


def hold_out(source: Source, fraction: float, seed: int = 0) -> tuple[Source, Source]:
    """Cuts a seeded random fraction of the examples off: ``(rest, cut)``.

    Raises:
        DataError: one of the two would be empty.
    """
    count = round(len(source) * fraction)
    if not 0 < count < len(source):
        raise DataError(
            f"{source.name}: holding {fraction} of {len(source)} examples out leaves an empty "
            "split; change the fraction"
        )
    order = permutation(len(source), seed, 0)
    rest, cut = np.sort(order[count:]), np.sort(order[:count])
    return (
        _subset(source, rest, f"{source.name} less {fraction} held out"),
        _subset(source, cut, f"{source.name}, the {fraction} held out"),
    )


def _subset(source: Source, kept: np.ndarray, name: str) -> Source:
    return replace(
        source,
        name=name,
        size=len(kept),
        read=lambda indices: source.read(kept[indices]),
        corrupt=lambda indices: source.corrupt(kept[indices]),
    )


def _open(
    name: str, data_dir: Path | None, split: str, image_size: int | None, memory_limit: int, corrupt: Corrupt
) -> Source:
    """Finds out which kind of data set a name means."""
    path = user_path(name.removeprefix("folder:"))
    if path.suffix == ".npz" and not name.startswith("folder:"):
        return _open_npz(path, split, image_size, memory_limit, corrupt)
    # A known set of that name wins over a folder that happens to lie here.
    if name.startswith("folder:") or (not is_known(name, data_dir) and is_image_folder(path)):
        records = folder_records(path, split, data_dir=data_dir, image_size=image_size)
    else:
        records = tfds_records(name, split, data_dir=data_dir, image_size=image_size)
    return _from_records(records, memory_limit, corrupt)


def _open_npz(path: Path, split: str, image_size: int | None, memory_limit: int, corrupt: Corrupt) -> Source:
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the path of an .npz file")
    arrays, class_names = npz_arrays(path, split, memory_limit)
    height, width = arrays[0].shape[1:3]
    if image_size not in (None, height) or image_size not in (None, width):
        raise DataError(
            f"{path}: images are {height} x {width} and arrays are not resized to {image_size}; "
            "use the augmentation's resize"
        )
    return _in_memory(f"{path}, split {split}", arrays, class_names, corrupt)


def _from_records(records: Records, memory_limit: int, corrupt: Corrupt) -> Source:
    """Decodes a split into memory, opens its decoded copy, or leaves it to be read per batch."""
    arrays = read_cache(records.cache)
    if arrays is None or len(arrays[1]) != records.size:
        with quiet_decoding():
            shape = records.probe(corrupt.limit)
        decode = labelled(partial(records.decode, shape=shape), len(records.class_names), records.name)
        decode = tolerant(decode, corrupt, shape)
        if records.size * math.prod(shape) > memory_limit:
            read = per_batch(decode, shape, max(memory_limit, MEMORY_LIMIT), records.name)
            return Source(records.name, records.size, shape, records.class_names, read, corrupt.mask, in_memory=False)
        with quiet_decoding():
            arrays = decode_all(decode, records.size, shape, records.name)
        if not len(corrupt):  # a copy would forget which examples are missing from it
            write_cache(records.cache, arrays)
    return _in_memory(records.name, arrays, records.class_names, corrupt)


def _in_memory(name: str, arrays: Arrays, class_names: tuple[str, ...], corrupt: Corrupt) -> Source:
    images, labels = arrays
    if corrupt.limit:
        for index in np.flatnonzero((labels < 0) | (labels >= len(class_names))):
            message = f"{name}: label {labels[index]} of example {index} is not in 0..{len(class_names) - 1}"
            corrupt.add(int(index), DataError(message))
    else:
        check_labels(labels, len(class_names), name)
    read = from_arrays(images, labels)
    return Source(name, len(labels), images.shape[1:], class_names, read, corrupt.mask, in_memory=True)
