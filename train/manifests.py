"""What a checkpoint contains, and reading it back: the same bytes or an error.

Orbax notices missing and truncated files but not flipped bits inside an array. So beside its state each step holds a
manifest: type, shape and CRC-32 of every leaf, the run's config, its validation accuracy, and a CRC-32 of all this.
"""

from __future__ import annotations

import gc
import json
import logging
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
    """
    try:
        manifest = json.loads((folder / str(step) / "manifest" / "metadata").read_bytes())
        content = {name: manifest[name] for name in ("leaves", "config", "accuracy")}
        intact = manifest["crc32"] == _text_crc(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"its manifest cannot be read ({one_line(error)})") from error
    if not intact:
        raise Damaged("the checksum of its manifest does not match")
    return content


def read(folder: Path, step: int) -> Leaves:
    """A checkpoint's arrays by path, all of them as they were written. Other processes have no part in it.

    Raises:
        Damaged: something is missing or not what was written.
    """
    expected = read_manifest(folder, step)["leaves"]
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        leaves, reason = _read_arrays(folder / str(step) / "state", alone)
    if reason is not None:
        raise Damaged(reason)
    for path, (kind, crc) in expected.items():
        if path not in leaves:
            raise Damaged(f"{path} is missing")
        if describe(leaves[path]) != kind or _crc(leaves[path]) != crc:
            raise Damaged(f"the checksum of {path} does not match")
    return {path: leaves[path] for path in expected}


def _read_arrays(folder: Path, options: ocp.options.MultiprocessingOptions) -> tuple[Leaves, str | None]:
    """The arrays by path, or what Orbax and TensorStore, which raise many kinds for damage, say against them."""
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
            tree = reader.restore(folder.resolve(), args=ocp.args.StandardRestore())
        return {path: np.asarray(leaf) for path, leaf in flat(tree).items()}, None
    except Exception as error:
        reason = one_line(error)
    settle()
    return {}, reason


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
