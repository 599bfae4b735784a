"""The exceptions of the data package, and the words that several modules share."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


class DataError(ValueError):
    """A data set cannot be used; the message is one line with the culprit and the remedy."""


class NoSplit(DataError):
    """A data set has no such split."""


def require(module: str, package: str, why: str) -> ModuleType:
    """Imports an optional package, or says in one line what to install.

    Args:
        module: the module to import, for example ``"tensorflow_datasets"``.
        package: what ``pip install`` calls it.
        why: what needs it, the subject of the error's sentence.

    Raises:
        DataError: the module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{why} needs the package {package} ({one_line(error)}): pip install {package}") from error


def user_path(path: str | Path) -> Path:
    """The path with ``~`` and ``~user`` replaced.

    Raises:
        DataError: there is no such user, or a NUL in it.
    """
    if "\0" in str(path):
        raise DataError(f"{str(path)!r}: no path contains a NUL; correct it")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{str(path)!r}: there is no such user; write ./~ for a folder of that name") from error


def one_line(error: object) -> str:
    """The first line of an exception's text, or its type where the text is empty."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def no_split(where: Path, split: str, usable: Iterable[str]) -> NoSplit:
    """The error for a split that is missing or empty."""
    cut = "; or cut one off train with holdout" if split == "validation" else ""
    found = ", ".join(usable) or "none"
    return NoSplit(f"{where}: no examples in a split {split!r}; use one that has: {found}{cut}")
