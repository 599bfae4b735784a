"""What a kind of data set is, and what all kinds share. Each kind is one file with one `Kind` value."""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from train.data.view import View
from train.errors import DataError, NoSplit, StorageError, one_line, say

Arrays = tuple[np.ndarray, np.ndarray]
"""``(images uint8[n, h, w, c], labels int32[n])``."""


class Read(Protocol):
    """Reads the examples at ``indices int[n]``; ``draws float[n, NUM_DRAWS]`` in [0, 1) place random crops."""

    def __call__(self, indices: np.ndarray, draws: np.ndarray | None = None, /) -> Arrays: ...


class Decode(Protocol):
    """Decodes the examples at ``indices int[n]`` into ``images uint8[n, h, w, c]``, in the calling thread, and returns
    their ``labels int32[n]``; draws as above."""

    def __call__(self, indices: np.ndarray, images: np.ndarray, draws: np.ndarray | None = None, /) -> np.ndarray: ...


Shape = tuple[int, int, int]
"""``(h, w, c)`` of an image."""

SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}
"""What data sets call each split."""

MAX_CLASSES = 2**16
"""More than any data set has. Without a limit, one number in an untrusted file could claim billions."""


class Request(NamedTuple):
    """The split that `train.data.load` was asked for; its arguments are described there."""

    name: str
    split: str
    data_dir: Path | None
    view: View
    memory_limit: int
    write: bool = True


class Records(NamedTuple):
    """A split on disk that is not decoded yet.

    Attributes:
        name: names the split in errors and progress bars.
        size: the number of examples.
        class_names: the name of every label.
        probe: ``max_unreadable -> image shape``; looks into files where the set does not state the shape, and passes
            over as many unreadable ones as its argument allows.
        decode: decodes some examples, to the shape of `probe`.
        copy: the folder for a decoded copy, ``.../SPLIT-OPTIONS-FINGERPRINT``; the fingerprint changes with the files.
        files: a hash of the files' names and sizes, for `Source.files`; empty where the same examples may lie in other
            files after they were prepared again.
        labels: ``indices -> int32[n]``, labels without images, as `decode` gives them.
        shuffled: whether the examples are stored in random order.
    """

    name: str
    size: int
    class_names: tuple[str, ...]
    probe: Callable[[int], Shape]
    decode: Decode
    copy: Path
    files: str = ""
    labels: Callable[[np.ndarray], np.ndarray] | None = None
    shuffled: bool = False


class InMemory(NamedTuple):
    """A decoded split; its labels are not checked yet."""

    name: str
    class_names: tuple[str, ...]
    arrays: Arrays


class Kind(NamedTuple):
    """A kind of data set.

    Attributes:
        accepts: ``(name, data_dir) -> bool``, whether the name means a set of this kind; opens no file.
        open: opens a split, or raises a `DataError`.
    """

    accepts: Callable[[str, Path | None], bool]
    open: Callable[[Request], Records | InMemory]


def no_split(where: Path, split: str, usable: Iterable[str]) -> NoSplit:
    """The error for a split that is missing or empty."""
    cut = {
        "validation": "; or cut one off train with --data.holdout",
        "test": "; or take a part of one, for example by --data.test-split train[90%:]",
    }.get(split, "")
    found = ", ".join(usable)
    if not found:
        return NoSplit(f"{where}: no examples in {split!r}, nor in any other split")
    return NoSplit(f"{where}: no examples in a split {split!r}; use one that has: {found}{cut}")


def not_now(what: str, error: BaseException) -> StorageError:
    """The error for what the system cannot read at the moment: it may be intact, and is not to be replaced."""
    return StorageError(
        f"{what} cannot be read now ({one_line(error)}); it may be intact: repair the disk, its permissions or the "
        "lack of memory, and start again"
    )


def stored_split(where: Path, split: str, names: Collection[str]) -> str | None:
    """The one of the names that means a split; None where there is none.

    Raises:
        DataError: there are several.
    """
    found = [name for name in SPLIT_NAMES.get(split, (split,)) if name in names]
    if len(found) > 1:
        raise DataError(f"{where}: {' and '.join(found)} both mean the {split} split; rename or remove one")
    return found[0] if found else None


def stored_name(name: str) -> str:
    """One name for all that sets call a split: ``validation`` for ``val``."""
    return next((split for split, names in SPLIT_NAMES.items() if name in names), name)


@functools.cache
def say_once(message: str) -> None:
    """Prints a line on standard error, the first time only: every split of a set would say it again."""
    say(message)


def default_data_dir() -> Path:
    """``$DEFORMREG_DATA``, or a folder in the user's cache."""
    return user_path(os.environ.get("DEFORMREG_DATA") or "~/.cache/deformreg/data")


def user_path(path: str | Path) -> Path:
    """The path with ``~`` and ``~user`` expanded.

    Raises:
        DataError: there is no such user, or the path contains a NUL character.
    """
    if re.match(r"[a-z][a-z0-9+.-]+://", str(path)):
        raise DataError(f"{path} is no path of this host: mount the storage, or copy the data to a disk")
    if "\0" in str(path):
        raise DataError(f"{str(path)!r}: no path contains a NUL; correct it")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{str(path)!r}: there is no such user; write ./~ for a folder of that name") from error


def require(module: str, package: str, why: str) -> Any:
    """Imports an optional package.

    Args:
        module: the module to import, for example ``"tensorflow_datasets"``.
        package: what ``pip install`` calls it.
        why: what needs it, the subject of the error's sentence.

    Raises:
        DataError: the module cannot be imported; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{why} needs the package {package} ({one_line(error)}): pip install {package}") from error
