"""Orbax checkpoints that say what is in them, written in the background.

Orbax notices missing and truncated files but not flipped bits inside an array. So beside its state each step holds a
manifest: type, shape and CRC-32 of every leaf, the run's config, its validation accuracy, and a CRC-32 of all this.
Reading compares, and falls back to the newest step that is whole.

All processes write together, and process 0 chooses what is read.
"""

from __future__ import annotations

import gc
import json
import logging
import shutil
import sys
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from train import processes, runs
from train.config import Config

Tree = Any
Leaves = dict[str, np.ndarray]


class CheckpointError(ValueError):
    """No usable checkpoint; the message is one line with the culprit and the remedy."""


class Damaged(ValueError):
    """A checkpoint is not what was written; the message says where."""


class Restored(NamedTuple):
    """What `restore` found.

    Attributes:
        step: of the checkpoint.
        state: NumPy arrays.
        skipped: newer steps that are damaged, with what is wrong with them.
    """

    step: int
    state: Tree
    skipped: dict[int, str]


class _Keep:
    """Keeps the last two steps and the one of best validation accuracy."""

    def __init__(self, accuracies: dict[int, float]) -> None:
        self.accuracies = accuracies

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-2:], _best({step: self.accuracies[step] for step in steps if step in self.accuracies})}
        return [step in kept for step in steps]


def _best(accuracies: dict[int, float]) -> int | None:
    """The step of highest accuracy, of several the last."""
    return max(accuracies, key=lambda step: (accuracies[step], step), default=None)


class Writer(NamedTuple):
    """Where checkpoints go.

    Attributes:
        manager: Orbax's.
        keep: which steps stay.
        run: the run folder.
        config: the run's, written into every manifest.
    """

    manager: ocp.CheckpointManager
    keep: _Keep
    run: runs.Run
    config: Config

    def save(self, step: int, state: Tree, accuracy: float | None = None) -> None:
        """Starts writing a checkpoint; the next save and the end of `open_writer` wait for it.

        Raises:
            StorageError: this checkpoint or the one before cannot be written.
        """
        runs.check_there(self.run)
        # Copied: the next step may reuse the buffers while the file is being written.
        leaves = {path: np.array(leaf) for path, leaf in _flat(state).items()}
        if accuracy is not None:
            self.keep.accuracies[step] = accuracy
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_nested(leaves)),
            manifest=ocp.args.JsonSave(_manifest(leaves, self.config, accuracy)),
        )
        with _storing(self.run), _quiet():
            if not self.manager.save(step, args=items, force=True):
                raise ValueError(f"step {step} was not accepted")


@contextmanager
def open_writer(run: runs.Run, config: Config) -> Iterator[Writer]:
    """Opens a run's checkpoints for writing, in all processes together, and closes them when all are on disk.

    Raises:
        StorageError: the last checkpoint cannot be written.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    keep = _Keep(accuracies(run.checkpoints))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        cleanup_tmp_directories=True,
        # In the background, a folder that cannot be made leaves threads that hold up the exit for minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    with _storing(run):
        manager = ocp.CheckpointManager(run.checkpoints.resolve(), options=options)
    try:
        yield Writer(manager, keep, run, config)
    except BaseException as error:
        # A process that fails alone must not wait for the others.
        if jax.process_count() == 1 or isinstance(error, processes.Stopped):
            with suppress(Exception):
                manager.close()
        raise
    with _storing(run):
        manager.close()


@contextmanager
def _storing(run: runs.Run) -> Iterator[None]:
    """Turns the many kinds of error that writing raises into one."""
    try:
        yield
    except runs.StorageError:
        raise
    except Exception as error:
        raise runs.StorageError(
            f"{run.checkpoints}: a checkpoint cannot be written ({_one_line(error)}); earlier ones are kept: make room "
            "or mend the disk, and --resume continues"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's warnings, and without what reads beside a failed one have to say."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda event: None if "Event loop is closed" in str(event.exc_value) else hook(event)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook


def _flat(tree: Tree) -> dict[str, Any]:
    """Leaves by path, ``params/stage_0/...``; the same for named tuples and for dictionaries."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _nested(leaves: Leaves) -> dict[str, Any]:
    """Plain dictionaries, so that a checkpoint can be read without this program's types."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _describe(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"


def _crc(leaf: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data)


def _text_crc(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _manifest(leaves: Leaves, config: Config, accuracy: float | None) -> dict[str, Any]:
    content = {
        "leaves": {path: [_describe(leaf), _crc(leaf)] for path, leaf in leaves.items()},
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
        raise Damaged(f"its manifest cannot be read ({_one_line(error)})") from error
    if not intact:
        raise Damaged("the checksum of its manifest does not match")
    return content


def read(folder: Path, step: int) -> Leaves:
    """A checkpoint's arrays by path, all of them as they were written. Other processes have no part in it.

    Raises:
        Damaged: something is missing or not what was written.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    expected = read_manifest(folder, step)["leaves"]
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    with _quiet():
        leaves, reason = _read_arrays(folder / str(step) / "state", alone)
    if reason is not None:
        raise Damaged(reason)
    for path, (kind, crc) in expected.items():
        if path not in leaves:
            raise Damaged(f"{path} is missing")
        if _describe(leaves[path]) != kind or _crc(leaves[path]) != crc:
            raise Damaged(f"the checksum of {path} does not match")
    return {path: leaves[path] for path in expected}


def _read_arrays(folder: Path, options: ocp.options.MultiprocessingOptions) -> tuple[Leaves, str | None]:
    """The arrays by path, or what Orbax and TensorStore, which raise many kinds for damage, say against them."""
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
            tree = reader.restore(folder.resolve(), args=ocp.args.StandardRestore())
        return {path: np.asarray(leaf) for path, leaf in _flat(tree).items()}, None
    except Exception as error:
        reason = _one_line(error)
    time.sleep(0.1)  # other reads are under way and report to an event loop that is closed by now
    gc.collect()
    return {}, reason


def accuracies(folder: Path) -> dict[int, float]:
    """Validation accuracies in [0, 1] by step, of the checkpoints that have one."""
    found = {}
    for step in steps(folder):
        with suppress(Damaged):
            found[step] = read_manifest(folder, step)["accuracy"]
    return {step: accuracy for step, accuracy in found.items() if accuracy is not None}


def best_step(folder: Path) -> int | None:
    """The step of best validation accuracy; None where no checkpoint has one."""
    return _best(accuracies(folder))


def restore(folder: Path, state: Tree, *, config: Config, step: int | None = None) -> Restored:
    """Reads the newest checkpoint that is whole.

    Args:
        folder: a run's checkpoints.
        state: a state of the same structure, shapes and types.
        config: the run's; it must be the checkpoint's in all that training depends on.
        step: only this one; None for the newest.

    Raises:
        CheckpointError: none is whole, or it belongs to another config or network.
    """
    skipped = {}
    for candidate in [step] if step is not None else reversed(steps(folder)):
        try:
            manifest = read_manifest(folder, candidate)
            _check_fits(folder / str(candidate), manifest, state, config)
            leaves = read(folder, candidate)
        except Damaged as error:
            skipped[candidate] = str(error)
            continue
        restored = [leaves[path] for path in _flat(state)]
        return Restored(candidate, jax.tree.unflatten(jax.tree.structure(state), restored), skipped)
    detail = "; ".join(f"step {step}: {reason}" for step, reason in skipped.items()) or "there is none"
    raise CheckpointError(f"{folder}: no intact checkpoint ({detail})")


def _check_fits(path: Path, manifest: dict[str, Any], state: Tree, config: Config) -> None:
    """Refuses a checkpoint of another config or network; that is no damage, and no older one would do."""
    if differing := runs.config_differences(manifest["config"], config).fixed:
        raise CheckpointError(f"{path} is of another config (there, here): {'; '.join(differing)}")
    here = {name: _describe(leaf) for name, leaf in _flat(state).items()}
    there = {name: kind for name, (kind, _) in manifest["leaves"].items()}
    differing = [
        f"{name}: {there.get(name, 'missing')}, {here.get(name, 'missing')}"
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise CheckpointError(f"{path} is of another network (there, here): {'; '.join(differing[:3])}{more}")


def resume(folder: Path, state: Tree, *, config: Config) -> Restored | None:
    """Reads in every process the newest checkpoint that process 0 finds whole; None where there is none at all.

    Damaged newer ones are set aside, as ``damaged-STEP``, since the run comes to their steps again.

    Raises:
        CheckpointError: there are some but none is whole, or they belong to another config or network.
    """
    found, failure = None, None
    if processes.is_lead() and steps(folder):
        try:
            found = restore(folder, state, config=config)
        except CheckpointError as error:
            failure = error
        else:
            for step in found.skipped:
                aside = folder / f"damaged-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (folder / str(step)).rename(aside)
    chosen = processes.from_lead(-1 if failure else found.step if found else 0)
    if failure:
        raise failure
    if chosen < 0:
        raise CheckpointError(f"{folder}: process 0 finds no checkpoint to continue from")
    if chosen and not found:
        found = restore(folder, state, config=config, step=chosen)
    return found


def verify(folder: Path, config: Config) -> Iterator[tuple[int, str | None]]:
    """Reads all checkpoints; yields each step with what is wrong with it, None for nothing."""
    for step in steps(folder):
        try:
            differing = runs.config_differences(read_manifest(folder, step)["config"], config).fixed
            read(folder, step)
        except Damaged as error:
            yield step, str(error)
        else:
            yield step, f"another config than the run's (there, here): {'; '.join(differing)}" if differing else None


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
