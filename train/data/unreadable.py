"""Examples that cannot be read: each is named, counted and replaced, up to a limit.

What replaces an example is a function of its index and the data alone, so a run with unreadable examples repeats and
resumes bit for bit like any other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from train.data.kind import Arrays, Decode, Read
from train.errors import DataError, NoSplit, say


def check_labelled(labels: np.ndarray, where: str) -> None:
    """Raises `NoSplit` if every label is -1, by which sets such as ImageNet mark a split without labels."""
    if labels.size and (labels == -1).all():
        raise NoSplit(f"{where}: its examples have no labels (-1): use a labelled split, by --data.test-split")


class Unreadable:
    """The unreadable examples of one split that were found so far; thread-safe.

    Args:
        limit: the most there may be; with 0 the first one raises its own error.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._found: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._found)

    def add(self, index: int, error: DataError) -> None:
        """Counts an example and names it on standard error, once.

        Raises:
            DataError: it is one more than the limit.
        """
        with self._lock:
            if index in self._found:
                return
            self._found.add(index)
            count = len(self._found)
        if not self.limit:
            raise error
        if count > self.limit:
            raise DataError(f"{error}; it is the unreadable example number {count}, over --data.max-unreadable")
        say(f"skipped an unreadable example ({count} of at most {self.limit}): {error}")

    def add_wrong_labels(self, labels: np.ndarray, indices: np.ndarray, num_classes: int, where: str) -> None:
        """Counts every example whose label is outside ``[0, num_classes)``.

        Raises:
            DataError: as `add`.
        """
        wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
        for position in wrong:
            message = (
                f"{where}: label {labels[position]} of example {indices[position]} is not in 0..{num_classes - 1} "
                f"({wrong.size} such labels); correct the labels or use a labelled split"
            )
            self.add(int(indices[position]), DataError(message))

    def mask(self, indices: np.ndarray) -> np.ndarray:
        """``bool[n]``, which of the examples are known to be unreadable."""
        with self._lock:
            return np.isin(indices, list(self._found)) if self._found else np.zeros(len(indices), bool)


def tolerant(decode: Decode, unreadable: Unreadable) -> Decode:
    """`decode` with zeros in place of unreadable examples, which are added to `unreadable`."""
    if not unreadable.limit:
        return decode

    def decode_most(indices: np.ndarray, images: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        try:
            return decode(indices, images, draws)
        except DataError:  # now one by one, to find which
            labels = np.zeros(len(indices), np.int32)
        for position, index in enumerate(indices):
            one = slice(position, position + 1)
            try:
                labels[one] = decode(indices[one], images[one], None if draws is None else draws[one])
            except DataError as error:
                images[one] = 0
                unreadable.add(int(index), error)
        return labels

    return decode_most


def with_substitutes(read: Read, unreadable: Callable[[np.ndarray], np.ndarray], size: int, where: str) -> Read:
    """`read` with the next readable example, by index, in place of an unreadable one.

    Args:
        read: may return anything in place of unreadable examples.
        unreadable: ``indices int[n] -> bool[n]``, asked after they were read.
        size: of the split that substitutes come from, so that none comes from the held-out part.
        where: names the split in errors.
    """

    def read_substituted(indices: np.ndarray, draws: np.ndarray | None = None) -> Arrays:
        images, labels = read(indices, draws)
        wanted, open_places = np.array(indices), np.flatnonzero(unreadable(indices))
        for _ in range(size):
            if not open_places.size:
                return images, labels
            wanted[open_places] = (wanted[open_places] + 1) % size
            images[open_places], labels[open_places] = read(
                wanted[open_places], None if draws is None else draws[open_places]
            )
            open_places = open_places[unreadable(wanted[open_places])]
        raise DataError(f"{where}: no example can be read; copy or prepare the set again")

    return read_substituted
