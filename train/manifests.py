"""What a checkpoint contains, and reading it back: the same bytes or an error.

Orbax notices missing and truncated files but not flipped bits inside an array. So beside its state each step holds a
manifest: type, shape and CRC-32 of every leaf, the run's config, its validation accuracy, and a CRC-32 of all this.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from train import runs
from train.config import Config

Tree = Any
Leaves = dict[str, np.ndarray]


_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
"""What a missing file or a damaged name leads to. Any other error of the system says nothing about what is on disk."""

_NOT_NOW = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "UNKNOWN")
"""How TensorStore's `ValueError`s begin that tell of such an error; some do not give its number."""


class Damaged(ValueError):
    """A checkpoint is not what was written; the message says where."""


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
    """Type and shape, ``float32[3, 4]``."""
    return f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"


def _crc(leaf: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data)


def _text_crc(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def create(leaves: Leaves, config: Config, accuracy: float | None) -> dict[str, Any]:
    """The manifest of a state's leaves, as JSON values."""
    content = {
        "leaves": {path: [describe(leaf), _crc(leaf)] for path, leaf in leaves.items()},
        "config": runs.config_tree(config),
        "accuracy": accuracy,
    }
    return {**content, "crc32": _text_crc(content)}


def steps(folder: Path) -> list[int]:
    """The steps of which a completed checkpoint is there, oldest first."""
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def read_manifest(folder: Path, step: int) -> dict[str, Any]:
    """A checkpoint's manifest.

    Raises:
        Damaged: it is missing or not what was written.
        StorageError: it cannot be read now.
    """
    path = folder / str(step)
    try:
        with _reading(path):
            manifest = json.loads(runs.patiently((path / "manifest" / "metadata").read_bytes))
            content = {name: manifest[name] for name in ("leaves", "config", "accuracy")}
            intact = manifest["crc32"] == _text_crc(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"its manifest cannot be read ({one_line(error)})") from error
    if not intact:
        raise Damaged("the checksum of its manifest does not match")
    if not _well_formed(content):
        raise Damaged("its manifest is none of this program's")
    return content


def _well_formed(content: dict[str, Any]) -> bool:
    """Whether a manifest holds leaves and an accuracy; its config is checked where it is compared."""
    leaves, accuracy = content["leaves"], content["accuracy"]
    return (
        type(accuracy) in (float, int, type(None))
        and isinstance(leaves, dict)
        and all(isinstance(leaf, list) and [type(part) for part in leaf] == [str, int] for leaf in leaves.values())
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tells damage from a disk that does not answer, a lack of permission or of memory, which a later try may not meet.

    Raises:
        Damaged: a file is missing.
        StorageError: any other error of the system.
    """
    try:
        yield
    except (OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno in _ABSENT:
            raise Damaged(one_line(error)) from error
        raise runs.StorageError(
            f"{path} cannot be read now ({one_line(error)}); it may be whole, so nothing is set aside: mend that, or "
            "move the folder away"
        ) from error


def read(folder: Path, step: int) -> Leaves:
    """A checkpoint's arrays by path, all of them as they were written. Other processes have no part in it.

    Raises:
        Damaged: something is missing or not what was written.
        StorageError: it cannot be read now.
    """
    expected = read_manifest(folder, step)["leaves"]
    kinds = {path: kind for path, (kind, _) in expected.items()}
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    with _reading(folder / str(step)), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        leaves = runs.patiently(lambda: _read_state(folder / str(step) / "state", kinds, alone))
    for path, (kind, crc) in expected.items():
        if path not in leaves:
            raise Damaged(f"{path} is missing")
        if describe(leaves[path]) != kind or _crc(leaves[path]) != crc:
            raise Damaged(f"the checksum of {path} does not match")
    return {path: leaves[path] for path in expected}


def _read_state(folder: Path, kinds: dict[str, str], options: ocp.options.MultiprocessingOptions) -> Leaves:
    """The arrays by path, if they are of the given types and shapes.

    Raises:
        Damaged: they are not, or cannot be decoded.
        OSError, MemoryError: what that says is not known.
    """
    leaves, failure = _restore(folder, kinds, options)
    if failure is None:
        return leaves
    settle()
    if isinstance(failure, Damaged):
        _read_files(folder)  # Orbax takes some files that it cannot look at for missing
    raise failure


def _restore(
    folder: Path, kinds: dict[str, str], options: ocp.options.MultiprocessingOptions
) -> tuple[Leaves, Exception | None]:
    """The arrays by path, or what is to be made of Orbax's and TensorStore's error."""
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
            # Before they are read: arrays that claim more than the manifest would take that memory.
            there = {path: describe(leaf) for path, leaf in flat(handler.metadata(folder.resolve()).tree).items()}
            for path in sorted({*kinds, *there}):
                if there.get(path) != kinds.get(path):
                    raise Damaged(f"{path} is {there.get(path, 'missing')}, its manifest has {kinds.get(path, 'none')}")
            tree = reader.restore(folder.resolve(), args=ocp.args.StandardRestore())
        return {path: np.asarray(leaf) for path, leaf in flat(tree).items()}, None
    except Exception as error:
        return {}, _interpret(error)


def _interpret(error: Exception) -> Exception:
    """A new error without the frames of one of any kind: the system's where it tells of that, else of damage."""
    if isinstance(error, MemoryError):
        return MemoryError(one_line(error))
    if isinstance(error, OSError) and error.errno not in {None, *_ABSENT}:
        return OSError(error.errno, error.strerror, error.filename)
    if str(error).startswith(_NOT_NOW):
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
    """Without the tracebacks that reads and writes beside a failed one print: its error says what there is to say."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    hook = sys.unraisablehook
    sys.unraisablehook = lambda event: None if "Event loop is closed" in str(event.exc_value) else hook(event)
    try:
        yield
    finally:
        sys.unraisablehook = hook


def settle() -> None:
    """Lets reads and writes that are still under way report, to an event loop that is closed by now."""
    time.sleep(0.1)
    gc.collect()


def one_line(error: BaseException) -> str:
    """The first line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
