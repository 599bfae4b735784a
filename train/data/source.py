"""Loads data sets of labelled 8-bit images by name: ``load("cifar10", split="train")``."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from train.data import embedded, folder, npz, prepared
from train.data.decoded import read_copy, remove_leftovers, write_copy
from train.data.decoding import decode_batch, decode_split, quiet_decoding
from train.data.kind import Arrays, InMemory, Kind, Read, Records, Request, Shape, stored_name, user_path
from train.data.order import permutation
from train.data.parts import Part, parse
from train.data.unreadable import Unreadable, check_labelled, tolerant, with_substitutes
from train.data.view import View, check_view
from train.errors import DataError, printable

KINDS: tuple[Kind, ...] = (npz.KIND, embedded.KIND, prepared.KIND, folder.KIND)
"""The first kind that accepts a name opens it, so a known set takes precedence over a folder of the same name."""

MEMORY_LIMIT = 2 << 30
"""Decoded splits of at most this many bytes are kept in one array."""

_SAMPLE_BYTES = 2**28  # all of CIFAR; hashing them takes a fraction of a second
_SAMPLE_DECODED = 1024  # examples that are decoded for a fingerprint


@dataclass(frozen=True)
class Source:
    """Labelled images with random access.

    Attributes:
        name: the data set and split, for messages.
        size: the number of examples, also ``len(source)``.
        image_shape: ``(h, w, c)``.
        class_names: one name for every label.
        read: ``indices int[n] -> (images uint8[n, h, w, c], labels int32[n])``, thread-safe. The arrays belong to the
            caller; `read` never writes to them again, because a dispatched step may still use them.
        unreadable: ``indices int[n] -> bool[n]``: which examples were found unreadable when they were read. `read`
            returns others in their place; evaluation leaves them out.
        in_memory: whether `read` only copies from memory. Reading ahead is then useless.
        files: a hash of the names and sizes of the files that are decoded batch by batch; empty for other sources.
        fingerprint: a hash of images and labels, which does not depend on where the data are. It covers all of a source
            in memory of at most 256 MiB; otherwise a sample that is spread over the source, and `files`.
        whole: the number of examples of the stored split that it is, or is a part of.
        labels: ``indices int[n] -> int32[n]``, labels without decoding images; None if these must be decoded.
        shuffled: whether the examples are in random order.
        random: whether training takes random crops: `read` then also takes draws, ``float[n, NUM_DRAWS]`` in [0, 1).
    """

    name: str
    size: int
    image_shape: Shape
    class_names: tuple[str, ...]
    read: Read = field(repr=False)
    unreadable: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    in_memory: bool
    files: str = ""
    whole: int = 0
    labels: Callable[[np.ndarray], np.ndarray] | None = None
    shuffled: bool = False
    random: bool = False

    def __len__(self) -> int:
        return self.size

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.size} {self.image_shape} {self.num_classes} {self.files}".encode())
        image_bytes = math.prod(self.image_shape)
        count = _SAMPLE_BYTES // image_bytes if self.in_memory else _SAMPLE_DECODED
        sample = np.linspace(0, self.size - 1, min(self.size, max(count, 1)), dtype=np.int64)
        at_once = max(1, 2**24 // image_bytes)
        for start in range(0, len(sample), at_once):
            images, labels = self.read(sample[start : start + at_once])
            digest.update(images.data)
            digest.update(labels.data)
        return digest.hexdigest()[:32]


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    split: str = "train",
    train_split: str = "train",
    holdout: float = 0.0,
    image_size: int | None = None,
    center_crop: float | None = None,
    random_crop: float = 1.0,
    memory_limit: int = MEMORY_LIMIT,
    max_unreadable: int = 0,
    write: bool = True,
) -> Source:
    """Opens one split of a data set.

    ``name`` may be:

    * ``"mnist5k"`` or ``"digits"``: contained in an installed Python package, prepared on first use;
    * a TFDS set such as ``"cifar10"``, ``NAME[/CONFIG][:VERSION]``, prepared as array_record;
    * ``"folder:PATH"`` or a folder with ``train|validation|test/<class>/*.png|jpg|jpeg|bmp|webp``;
    * an ``.npz`` file with ``images`` and ``labels``, or ``train_images``, ``train_labels``,
      ``test_images`` and ``test_labels``, or ``x_train``, ``y_train``, ``x_test`` and ``y_test``.

    The validation split may also be called ``val``, ``valid`` or ``dev``.

    A split that fits into ``memory_limit`` is decoded once and saved as a decoded copy, which later loads read.
    Larger splits are decoded batch by batch.

    Args:
        name: the data set.
        data_dir: the folder of prepared sets. None means ``$DEFORMREG_DATA``, or else ``~/.cache/deformreg/data``;
            after that, TFDS's own folder is searched.
        split: ``"train"``, ``"test"`` or ``"validation"``, another split of a prepared set, or a part of one such as
            ``"train[98%:]"``.
        train_split: the split or part that ``"train"`` means.
        holdout: the fraction of ``"train"``, in [0, 1), that becomes ``"validation"``. The choice does not depend on
            the training seed, so that runs can be compared.
        image_size: resizes images to this height and width, in pixels, when they are decoded.
        center_crop: resizes the square in their centre that has this share, in (0, 1], of the shorter side; None
            stretches whole images.
        random_crop: the smallest share, in (0, 1], of an image's area that a random crop shows to `train_batches`, of
            an aspect ratio from 3/4 to 4/3 and resized to `image_size`; 1 for no such crop. The split is then decoded
            batch by batch.
        memory_limit: the largest size, in bytes, of a decoded split that is kept in memory.
        max_unreadable: how many unreadable examples are tolerated. Each is named on standard error and replaced by
            another; one more raises.
        write: whether to prepare embedded sets and write decoded copies; pass False if an untrusted file chose
            ``data_dir``.

    Returns:
        The split as a ``Source``.

    Raises:
        DataError: the set cannot be used, or an example cannot be read.
        StorageError: an example cannot be read now, and may be intact.

    Example:
        >>> train = load("digits", split="train", holdout=0.1)  # doctest: +SKIP
        >>> images, labels = train.read(np.arange(128))         # doctest: +SKIP
    """
    if not 0.0 <= holdout < 1.0:
        raise DataError(f"holdout {holdout} is not a fraction in [0, 1); give for example 0.1")
    view = View(image_size, center_crop, random_crop)
    check_view(view)
    cut = bool(holdout) and split in ("train", "validation")
    place = None if data_dir is None else user_path(data_dir)
    part = parse(train_split if cut or split == "train" else split)
    request = Request(name, stored_name(part.name), place, view, memory_limit, write)
    source = _open(request, Unreadable(max_unreadable))
    source = _part(replace(source, whole=len(source)), part)
    if cut:
        train, validation = hold_out(source, holdout)
        source = train if split == "train" else validation
    if not max_unreadable:
        return source
    # After the cut, so that a substitute comes from the same side of it.
    return replace(source, read=with_substitutes(source.read, source.unreadable, source.size, source.name))


def hold_out(source: Source, fraction: float, seed: int = 0) -> tuple[Source, Source]:
    """Splits a random fraction of the examples off, by `seed`; returns ``(rest, cut)``.

    Raises:
        DataError: one of the two would be empty.
    """
    count = round(len(source) * fraction)
    if not 0 < count < len(source):
        raise DataError(
            f"{source.name}: a holdout of {fraction} of {len(source)} examples leaves an empty "
            "split; change the fraction"
        )
    order = permutation(len(source), seed, 0)
    rest, cut = np.sort(order[count:]), np.sort(order[:count])
    return (
        subset(source, rest, f"{source.name} less {fraction} held out"),
        subset(source, cut, f"{source.name}, the {fraction} held out"),
    )


def _part(source: Source, part: Part) -> Source:
    """The named part of a whole stored split."""
    rows = part.rows(len(source))
    if not rows:
        raise DataError(f"{source.name}: [{part.start or ''}:{part.stop or ''}] of {len(source)} examples is empty")
    if len(rows) == len(source):
        return source
    return subset(source, np.asarray(rows), f"{source.name}[{part.start or ''}:{part.stop or ''}]")


def subset(source: Source, kept: np.ndarray, name: str) -> Source:
    """The examples of a split with these indices, in this order, as a split of its own."""
    labels, unreadable = source.labels, source.unreadable
    # A copy of a small part, so that the rest need not stay in memory.
    small = source.in_memory and 2 * len(kept) <= len(source)
    return replace(
        source,
        name=name,
        size=len(kept),
        read=_reading_copies(*source.read(kept)) if small else _reading_part(source.read, kept),
        unreadable=lambda indices: unreadable(kept[indices]),
        labels=None if labels is None else lambda indices: labels(kept[indices]),
    )


def _reading_part(read: Read, kept: np.ndarray) -> Read:
    def part(indices: np.ndarray, draws: np.ndarray | None = None) -> Arrays:
        return read(kept[indices]) if draws is None else read(kept[indices], draws)

    return part


def _reading_copies(images: np.ndarray, labels: np.ndarray) -> Read:
    def copies(indices: np.ndarray, draws: np.ndarray | None = None) -> Arrays:
        return np.take(images, indices, axis=0), np.take(labels, indices)

    return copies


def _open(request: Request, unreadable: Unreadable) -> Source:
    accepting = (kind for kind in KINDS if kind.accepts(request.name, request.data_dir))
    # If none accepts the name, the error of `prepared` says where it looked and what to do.
    opened = next(accepting, prepared.KIND).open(request)
    if isinstance(opened, Records):
        return _from_records(opened, request, unreadable)
    if request.view.center is not None or request.view.random:
        raise DataError(f"{printable(opened.name)}: arrays are not cropped; use the augmentation's crop and min_area")
    return _from_arrays(opened, unreadable)


def _from_records(records: Records, request: Request, unreadable: Unreadable) -> Source:
    """Opens the decoded copy of a split; without one, decodes the split now or, if it is large, batch by batch."""
    name, size, class_names = printable(records.name), records.size, _printable_all(records.class_names)
    random = request.view.random
    if request.write:
        remove_leftovers(records.copy)
    arrays = None if random else read_copy(records.copy, size, request.memory_limit)
    if arrays is None:
        with quiet_decoding():
            shape = records.probe(unreadable.limit)
        decode = tolerant(records.decode, unreadable)
        if random or size * math.prod(shape) > request.memory_limit:
            limit = max(request.memory_limit, MEMORY_LIMIT)

            def read(indices: np.ndarray, draws: np.ndarray | None = None) -> Arrays:
                images, labels = decode_batch(decode, indices, draws, shape, limit, name)
                # Labels are checked batch by batch, because checking them all at the start would read the whole set.
                unreadable.add_wrong_labels(labels, indices, len(class_names), name)
                return images, labels

            return Source(
                name, size, shape, class_names, read, unreadable.mask, in_memory=False, files=records.files,
                labels=records.labels, shuffled=records.shuffled, random=random,
            )  # fmt: skip
        with quiet_decoding():
            arrays = decode_split(decode, size, shape, name)
        if request.write and not len(unreadable):  # a copy does not record which examples were unreadable
            write_copy(records.copy, arrays)
    return replace(_from_arrays(InMemory(name, class_names, arrays), unreadable), shuffled=records.shuffled)


def _printable_all(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(printable(name) for name in names)


def _from_arrays(split: InMemory, unreadable: Unreadable) -> Source:
    name, class_names, (images, labels) = printable(split.name), _printable_all(split.class_names), split.arrays
    check_labelled(labels, name)
    unreadable.add_wrong_labels(labels, np.arange(len(labels)), len(class_names), name)

    def read(indices: np.ndarray, draws: np.ndarray | None = None) -> Arrays:
        return np.take(images, indices, axis=0), np.take(labels, indices)

    height, width, channels = images.shape[1:]
    return Source(
        name, len(labels), (height, width, channels), class_names, read, unreadable.mask, in_memory=True,
        labels=lambda indices: np.take(labels, indices),
    )  # fmt: skip
