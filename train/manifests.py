"""What a checkpoint contains, and reading it back: the bytes that were written, or an error.

Orbax notices missing and truncated files but not flipped bits inside an array. So each step holds a manifest beside
its state: type, shape and CRC-32 of every leaf or of each of its parts, the run's config, the validation accuracy, and
a CRC-32 of all this.
"""

from __future__ import annotations

import errno
import gc
import json
import logging
import math
import os
import re
import stat
import sys
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from train import files, options
from train.config import Config
from train.errors import StorageError, one_line
from train.shards import Leaf, describe

Tree = Any
Leaves = dict[str, np.ndarray]

_LARGEST = 256 << 20
"""Bytes of a manifest: a leaf takes about a hundred."""

_UNAVAILABLE = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "UNKNOWN")
"""How the messages of TensorStore's `ValueError`s begin that report such another error, some without its number."""


_STEP = re.compile(r"0|[1-9][0-9]{0,9}")
"""The name of a step's folder."""

_ORBAX_METADATA = "_CHECKPOINT_METADATA"
"""A small file that Orbax reads of every step when it begins to write."""


class Damaged(Exception):
    """A checkpoint is not what was written; the message says where."""


class Removed(Damaged):
    """A training removed the checkpoint while it was read."""


class Stored(NamedTuple):
    """A checkpoint on disk, known by its manifest; `read` reads its arrays.

    Attributes:
        path: the step's folder.
        leaves: the arrays, by path.
        config_tree: the config of its run, as JSON values.
        accuracy: on the validation images, in [0, 1]; None if it was not measured at this step.
    """

    path: Path
    leaves: dict[str, Leaf]
    config_tree: Any
    accuracy: float | None

    def config(self) -> Config:
        """The config of its run. Raises `ConfigError` if another version of this program wrote it."""
        return options.from_tree(self.config_tree)

    def read(self) -> Leaves:
        """The arrays by path, as they were written. Every process reads alone.

        Raises:
            Damaged: something is missing or not what was written; a `Removed` if a training removed it meanwhile.
            StorageError: it cannot be read now.
        """
        with _unless_removed(self.path):
            return self._read()

    def _read(self) -> Leaves:
        expected = {path: leaf.kind for path, leaf in self.leaves.items()}
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
        )
        with _reading(self.path), quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size = check_files(self.path)
            if size > 2 * sum(map(_bytes, expected.values())) + _LARGEST:
                raise Damaged(f"its files take {size} bytes, far more than its arrays")
            arrays = files.patiently(lambda: _read_state(self.path / "state", expected, alone))
        for path, leaf in self.leaves.items():
            if path not in arrays:
                raise Damaged(f"{path} is missing")
            if damage := leaf.damage(arrays[path]):
                raise Damaged(f"{damage} of {path} does not match")
        step = arrays.get("step")
        if step is not None and str(step) != self.path.name:
            raise Damaged(f"it holds step {step!s:.40}: its folder was renamed")
        return {path: arrays[path] for path in self.leaves}


def steps(folder: Path) -> list[int]:
    """The steps of the completed checkpoints, oldest first: a folder has its name once it is complete."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if _STEP.fullmatch(path.name) and path.is_dir())


def check_files(folder: Path) -> int:
    """The bytes of a checkpoint's files.

    Raises:
        Damaged: one is not a regular file, such as a pipe, which would block whoever reads it; or a folder is a link.
        StorageError: a file or a folder cannot be looked at now.
    """

    def fail(error: OSError) -> None:
        raise error

    size = 0
    with _reading(folder):
        for parent, folders, names in os.walk(folder, onerror=fail):
            for path in (Path(parent, name) for name in (*folders, *names)):
                facts = path.stat()
                if not (stat.S_ISREG(facts.st_mode) or (stat.S_ISDIR(facts.st_mode) and not path.is_symlink())):
                    raise Damaged(f"{path.relative_to(folder)} is not a regular file")
                if path.name == _ORBAX_METADATA and facts.st_size > 1 << 20:
                    raise Damaged(f"{path.relative_to(folder)} is too large")
                size += facts.st_size
    return size


def open_step(folder: Path, step: int) -> Stored:
    """Reads a checkpoint's manifest.

    Raises:
        Damaged: it is missing or not what was written; a `Removed` if a training removed it meanwhile.
        StorageError: it cannot be read now.
    """
    with _unless_removed(folder / str(step)):
        return _open_step(folder / str(step))


def _open_step(path: Path) -> Stored:
    try:
        with _reading(path):
            manifest = files.read_json(path / "manifest" / "metadata", limit=_LARGEST)
        content = {name: manifest[name] for name in ("leaves", "config", "accuracy")}
        intact = manifest["crc32"] == _text_crc(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"its manifest cannot be read ({one_line(error)})") from error
    if not intact:
        raise Damaged("the checksum of its manifest does not match")
    accuracy = content["accuracy"]
    try:
        leaves = {name: Leaf.from_json(value) for name, value in content["leaves"].items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise Damaged("not a deformreg checkpoint manifest") from error
    if type(accuracy) not in (float, int, type(None)):
        raise Damaged("not a deformreg checkpoint manifest")
    return Stored(path, leaves, content["config"], accuracy)


def create(leaves: dict[str, Leaf], config: Config, accuracy: float | None) -> dict[str, Any]:
    """The manifest of a state's leaves, as JSON values."""
    content = {
        "leaves": {path: leaf.to_json() for path, leaf in leaves.items()},
        "config": options.to_tree(config),
        "accuracy": accuracy,
    }
    return {**content, "crc32": _text_crc(content)}


def _text_crc(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def flat(tree: Tree) -> dict[str, Any]:
    """Leaves by path, ``params/stage_0/...``; the same for named tuples and for dictionaries."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def kinds(tree: Tree) -> dict[str, str]:
    """Types and shapes by path, as manifests have them."""
    return {path: describe(leaf) for path, leaf in flat(tree).items()}


def nested(leaves: Leaves) -> dict[str, Any]:
    """Plain dictionaries, so that a checkpoint can be read without this program's types."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _bytes(kind: str) -> int:
    """The bytes of an array, from what `describe` says of it; 0 if it says something else."""
    found = re.fullmatch(r"(\w+)\[([\d, ]*)\]", kind)
    try:
        shape = [int(length) for length in found[2].split(",") if length.strip()] if found else []
        return np.dtype(found[1]).itemsize * math.prod(shape) if found else 0
    except (TypeError, ValueError):
        return 0


@contextmanager
def _unless_removed(path: Path) -> Iterator[None]:
    """Tells a checkpoint that a training removed meanwhile, by renaming its folder, from a damaged one."""
    try:
        yield
    except (Damaged, StorageError) as error:
        if not path.is_dir():
            raise Removed(f"{path} is no longer there") from error
        raise


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Separates damage from what a later try may not meet: a disk that does not answer, missing permission or memory.

    Raises:
        Damaged: a file is missing.
        StorageError: any other error of the system.
    """
    try:
        yield
    except (OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno in files.MISSING:
            raise Damaged(one_line(error)) from error
        raise StorageError(
            f"{path} cannot be read now ({one_line(error)}); it may be intact, so it is left in place: repair the "
            "disk, or move the folder away"
        ) from error


def _read_state(folder: Path, expected: Mapping[str, str], alone: ocp.options.MultiprocessingOptions) -> Leaves:
    """The arrays by path, if they have the given types and shapes.

    Raises:
        Damaged: they have not, or cannot be decoded.
        OSError, MemoryError: the system failed; whether they are damaged is not known.
    """
    try:
        return _restore(folder, expected, alone)
    except Exception as error:
        failure = _interpret(error)
    # Raised outside the handler: Orbax's frames, kept alive by the error, would report their failures later.
    settle()
    if isinstance(failure, Damaged):
        _read_files(folder)  # Orbax takes some files that it cannot open for missing
    raise failure


def _restore(folder: Path, expected: Mapping[str, str], alone: ocp.options.MultiprocessingOptions) -> Leaves:
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        metadata = handler.metadata(folder.resolve()).tree
        # Compared before they are read: arrays that claim more than the manifest would take that memory.
        found = kinds(metadata)
        for path in sorted({*expected, *found}):
            if found.get(path) != expected.get(path):
                raise Damaged(f"{path} is {found.get(path, 'missing')}, its manifest has {expected.get(path, 'none')}")
        # NumPy arrays are asked for: otherwise Orbax restores split arrays to the devices that they were saved from.
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata)
        tree = reader.restore(folder.resolve(), args=ocp.args.StandardRestore(wanted))
    return {path: np.asarray(leaf) for path, leaf in flat(tree).items()}


def _interpret(error: Exception) -> Exception:
    """A new error, without the frames of the given one: the system's if it reports one, else damage."""
    if isinstance(error, MemoryError):
        return MemoryError(one_line(error))
    if isinstance(error, OSError) and files.may_be_intact(error):
        return OSError(error.errno, error.strerror, error.filename)
    if str(error).startswith(_UNAVAILABLE):
        return OSError(errno.EAGAIN, one_line(error))
    return Damaged(one_line(error))


def _read_files(folder: Path) -> None:
    """Reads all files below a folder. Raises the `OSError` of the first that cannot be read."""

    def fail(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        for path in (Path(parent, name) for name in names):
            if stat.S_ISREG(path.stat().st_mode):
                with path.open("rb") as file:
                    while file.read(1 << 20):
                        pass


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the tracebacks that Orbax's threads print beside a failed read or write, whose error says it all."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    hook = sys.unraisablehook
    sys.unraisablehook = lambda event: None if "Event loop is closed" in str(event.exc_value) else hook(event)
    try:
        yield
    finally:
        sys.unraisablehook = hook


def settle() -> None:
    """Lets reads and writes still under way report, within `quiet`, to an event loop that is closed by now."""
    time.sleep(0.1)
    gc.collect()
