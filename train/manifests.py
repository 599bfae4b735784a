"""What a checkpoint contains, and reading it back: the bytes that were written, or an error.

Orbax notices missing and truncated files but not flipped bits inside an array. So each step holds a manifest beside
its state: type, shape and CRC-32 of every leaf, the run's config, the validation accuracy, and a CRC-32 of all this.
"""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
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

Tree = Any
Leaves = dict[str, np.ndarray]

_LARGEST = 256 << 20
"""Bytes of a manifest: a leaf takes about a hundred."""

_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
"""Errors of a missing file or a damaged name. Any other error of the system says nothing about what is on disk."""

_UNAVAILABLE = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "UNKNOWN")
"""How the messages of TensorStore's `ValueError`s begin that report such another error, some without its number."""


class Damaged(Exception):
    """A checkpoint is not what was written; the message says where."""


class Leaf(NamedTuple):
    """What a manifest says of an array: type and shape as ``float32[3, 4]``, and the CRC-32 of its bytes."""

    kind: str
    crc: int


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
            Damaged: something is missing or not what was written.
            StorageError: it cannot be read now.
        """
        kinds = {path: leaf.kind for path, leaf in self.leaves.items()}
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
        )
        with _reading(self.path), quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arrays = files.patiently(lambda: _read_state(self.path / "state", kinds, alone))
        for path, leaf in self.leaves.items():
            if path not in arrays:
                raise Damaged(f"{path} is missing")
            if summarize(arrays[path]) != leaf:
                raise Damaged(f"the checksum of {path} does not match")
        return {path: arrays[path] for path in self.leaves}


def steps(folder: Path) -> list[int]:
    """The steps of the completed checkpoints, oldest first."""
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def open_step(folder: Path, step: int) -> Stored:
    """Reads a checkpoint's manifest.

    Raises:
        Damaged: it is missing or not what was written.
        StorageError: it cannot be read now.
    """
    path = folder / str(step)
    try:
        with _reading(path):
            manifest = files.read_json(path / "manifest" / "metadata", limit=_LARGEST)
        content = {name: manifest[name] for name in ("leaves", "config", "accuracy")}
        intact = manifest["crc32"] == _text_crc(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"its manifest cannot be read ({one_line(error)})") from error
    if not intact:
        raise Damaged("the checksum of its manifest does not match")
    leaves, accuracy = content["leaves"], content["accuracy"]
    if not (_are_leaves(leaves) and type(accuracy) in (float, int, type(None))):
        raise Damaged("not a deformreg checkpoint manifest")
    return Stored(path, {name: Leaf(*leaf) for name, leaf in leaves.items()}, content["config"], accuracy)


def create(leaves: Leaves, config: Config, accuracy: float | None) -> dict[str, Any]:
    """The manifest of a state's leaves, as JSON values."""
    content = {
        "leaves": {path: list(summarize(leaf)) for path, leaf in leaves.items()},
        "config": options.to_tree(config),
        "accuracy": accuracy,
    }
    return {**content, "crc32": _text_crc(content)}


def _text_crc(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _are_leaves(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(leaf, list) and [type(part) for part in leaf] == [str, int] for leaf in value.values()
    )


def flat(tree: Tree) -> dict[str, Any]:
    """Leaves by path, ``params/stage_0/...``; the same for named tuples and for dictionaries."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


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


def describe(leaf: Any) -> str:
    """Type and shape, ``float32[3, 4]``, of an array or a `jax.ShapeDtypeStruct`."""
    return f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"


def summarize(array: np.ndarray) -> Leaf:
    """What a manifest says of an array."""
    return Leaf(describe(array), zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data))


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
        if isinstance(error, OSError) and error.errno in _MISSING:
            raise Damaged(one_line(error)) from error
        raise StorageError(
            f"{path} cannot be read now ({one_line(error)}); it may be intact, so it is left in place: repair the "
            "disk, or move the folder away"
        ) from error


def _read_state(folder: Path, kinds: Mapping[str, str], alone: ocp.options.MultiprocessingOptions) -> Leaves:
    """The arrays by path, if they have the given types and shapes.

    Raises:
        Damaged: they have not, or cannot be decoded.
        OSError, MemoryError: the system failed; whether they are damaged is not known.
    """
    try:
        return _restore(folder, kinds, alone)
    except Exception as error:
        failure = _interpret(error)
    # Raised outside the handler: Orbax's frames, kept alive by the error, would report their failures later.
    settle()
    if isinstance(failure, Damaged):
        _read_files(folder)  # Orbax takes some files that it cannot open for missing
    raise failure


def _restore(folder: Path, kinds: Mapping[str, str], alone: ocp.options.MultiprocessingOptions) -> Leaves:
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        # Compared before they are read: arrays that claim more than the manifest would take that memory.
        found = {path: describe(leaf) for path, leaf in flat(handler.metadata(folder.resolve()).tree).items()}
        for path in sorted({*kinds, *found}):
            if found.get(path) != kinds.get(path):
                raise Damaged(f"{path} is {found.get(path, 'missing')}, its manifest has {kinds.get(path, 'none')}")
        tree = reader.restore(folder.resolve(), args=ocp.args.StandardRestore())
    return {path: np.asarray(leaf) for path, leaf in flat(tree).items()}


def _interpret(error: Exception) -> Exception:
    """A new error, without the frames of the given one: the system's if it reports one, else damage."""
    if isinstance(error, MemoryError):
        return MemoryError(one_line(error))
    if isinstance(error, OSError) and error.errno not in {None, *_MISSING}:
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
