"""Examples that cannot be read: named, counted and replaced, up to a limit.

What takes an example's place is a function of its index and the data alone, so that a run with unreadable examples
repeats and resumes to the bit like any other.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import numpy as np

from train.data.errors import DataError
from train.data.storage import Arrays, Fetch


class Corrupt:
    """The unreadable examples of one split, found so far; thread-safe.

    Args:
        limit: how many there may be; with 0 the first one raises its own error.
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
            raise DataError(f"{error}; it is the unreadable example number {count}, over --data.max-corrupt")
        print(f"skipped an unreadable example ({count} of at most {self.limit}): {error}", file=sys.stderr)

    def mask(self, indices: np.ndarray) -> np.ndarray:
        """``bool[n]``, which of the examples are known to be unreadable."""
        with self._lock:
            return np.isin(indices, list(self._found)) if self._found else np.zeros(len(indices), bool)


def tolerant(decode: Fetch, corrupt: Corrupt, shape: tuple[int, int, int]) -> Fetch:
    """`decode` with zeros in place of unreadable examples, which are added to `corrupt`."""
    if not corrupt.limit:
        return decode

    def fetch(indices: np.ndarray) -> Arrays:
        try:
            return decode(indices)
        except DataError:  # now one by one, to find which
            images, labels = np.zeros((len(indices), *shape), np.uint8), np.zeros(len(indices), np.int32)
        for position, index in enumerate(indices):
            try:
                image, label = decode(indices[position : position + 1])
            except DataError as error:
                corrupt.add(int(index), error)
            else:
                images[position], labels[position] = image[0], label[0]
        return images, labels

    return fetch


def with_substitutes(read: Fetch, corrupt: Callable[[np.ndarray], np.ndarray], size: int, where: str) -> Fetch:
    """`read` with the next readable example, by index, in place of an unreadable one.

    Args:
        read: gives anything in place of unreadable examples.
        corrupt: ``indices int[n] -> bool[n]``, asked after they were read.
        size: of the split that substitutes come from, so that none leaves a held-out part.
        where: names the split in errors.
    """

    def fetch(indices: np.ndarray) -> Arrays:
        images, labels = read(indices)
        wanted, open_places = np.array(indices), np.flatnonzero(corrupt(indices))
        for _ in range(size):
            if not open_places.size:
                return images, labels
            wanted[open_places] = (wanted[open_places] + 1) % size
            images[open_places], labels[open_places] = read(wanted[open_places])
            open_places = open_places[corrupt(wanted[open_places])]
        raise DataError(f"{where}: no example can be read; copy or prepare the set again")

    return fetch
