"""Orbax checkpoints, written in the background and never taken at their word.

All processes write together, each step with a manifest (`train.manifests`). Process 0 chooses what is read: the newest
step that is whole.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from train import manifests, processes, runs
from train.config import Config, ConfigError

Tree = Any


class CheckpointError(ValueError):
    """No usable checkpoint; the message is one line with the culprit and the remedy."""


class Restored(NamedTuple):
    """What `restore` found.

    Attributes:
        step: of the checkpoint.
        state: NumPy arrays.
        skipped: steps tried before that are damaged, with what is wrong with them.
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
        leaves = {path: np.array(leaf) for path, leaf in manifests.flat(state).items()}
        if accuracy is not None:
            self.keep.accuracies[step] = accuracy
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(manifests.nested(leaves)),
            manifest=ocp.args.JsonSave(manifests.create(leaves, self.config, accuracy)),
        )
        with _storing(self.run), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not self.manager.save(step, args=items, force=True):
                raise ValueError(f"step {step} was not accepted")


@contextmanager
def open_writer(run: runs.Run, config: Config) -> Iterator[Writer]:
    """Opens a run's checkpoints for writing, in all processes together, and closes them when all are on disk.

    Raises:
        StorageError: the last checkpoint cannot be written, or the accuracy of an earlier one not be read now.
    """
    keep = _Keep(_accuracies(run.checkpoints)[0])
    options = ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        cleanup_tmp_directories=True,
        # In the background, a folder that cannot be made leaves threads that hold up the exit for minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    with manifests.quiet():
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
        manifests.settle()
        raise runs.StorageError(
            f"{run.checkpoints}: a checkpoint cannot be written ({manifests.one_line(error)}); earlier ones are kept: "
            "make room or mend the disk, and --resume continues"
        ) from error


def best_first(folder: Path) -> list[int]:
    """The steps by validation accuracy, best first, of equal ones the last; then those without one, newest first.

    First of all come those whose manifest is damaged, for any of them may have been the best: `restore` names them.
    """
    accuracies, damaged = _accuracies(folder)
    rank = {**accuracies, **dict.fromkeys(damaged, math.inf)}
    return sorted(manifests.steps(folder), key=lambda step: (rank.get(step, -math.inf), step), reverse=True)


def _accuracies(folder: Path) -> tuple[dict[int, float], dict[int, str]]:
    """Validation accuracies in [0, 1] of the steps that have one; and steps whose manifest is damaged."""
    accuracies, damaged = {}, {}
    for step in manifests.steps(folder):
        try:
            accuracies[step] = manifests.read_manifest(folder, step)["accuracy"]
        except manifests.Damaged as error:
            damaged[step] = str(error)
    return {step: accuracy for step, accuracy in accuracies.items() if accuracy is not None}, damaged


def restore(folder: Path, state: Tree, *, config: Config, steps: Sequence[int] | None = None) -> Restored:
    """Reads the first checkpoint that is whole.

    Args:
        folder: a run's checkpoints.
        state: a state of the same structure, shapes and types, or only these (`jax.eval_shape`).
        config: the run's; it must be the checkpoint's in all that training depends on.
        steps: in which order they are tried; None for all, newest first.

    Raises:
        CheckpointError: none is whole, or it belongs to another config or network.
        StorageError: one cannot be read now, so that it is not known whether it is whole.
    """
    skipped = {}
    for candidate in reversed(manifests.steps(folder)) if steps is None else steps:
        try:
            manifest = manifests.read_manifest(folder, candidate)
            _check_fits(folder / str(candidate), manifest, state, config)
            leaves = manifests.read(folder, candidate)
        except manifests.Damaged as error:
            skipped[candidate] = str(error)
            continue
        restored = [leaves[path] for path in manifests.flat(state)]
        return Restored(candidate, jax.tree.unflatten(jax.tree.structure(state), restored), skipped)
    detail = "; ".join(f"step {step}: {reason}" for step, reason in skipped.items()) or "there is none"
    raise CheckpointError(f"{folder}: no intact checkpoint ({detail})")


def _check_fits(path: Path, manifest: dict[str, Any], state: Tree, config: Config) -> None:
    """Refuses a checkpoint of another config or network; that is no damage, and no older one would do."""
    try:
        differing = runs.config_differences(manifest["config"], config).fixed
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; use the version of this program that wrote it") from error
    if differing:
        raise CheckpointError(f"{path} is of another config (there, here): {'; '.join(differing)}")
    here = {name: manifests.describe(leaf) for name, leaf in manifests.flat(state).items()}
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
        StorageError: the newest cannot be read now; nothing is set aside.
    """
    found, failure = None, None
    kinds = (CheckpointError, runs.StorageError)  # as -1 and -2 in the other processes
    if processes.is_lead() and manifests.steps(folder):
        try:
            found = restore(folder, state, config=config)
        except kinds as error:
            failure = error
        else:
            for step in found.skipped:
                aside = folder / f"damaged-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (folder / str(step)).rename(aside)
    chosen = processes.from_lead(-1 - kinds.index(type(failure)) if failure else found.step if found else 0)
    if failure:
        raise failure
    if chosen < 0:
        raise kinds[-1 - chosen](f"{folder}: process 0 finds no checkpoint to continue from")
    if chosen and not found:
        found = restore(folder, state, config=config, steps=[chosen])
    return found


def verify(folder: Path, config: Config) -> Iterator[tuple[int, str | None]]:
    """Reads all checkpoints; yields each step with what is wrong with it, None for nothing."""
    for step in manifests.steps(folder):
        try:
            differing = runs.config_differences(manifests.read_manifest(folder, step)["config"], config).fixed
            manifests.read(folder, step)
        except (manifests.Damaged, ConfigError, runs.StorageError) as error:
            yield step, str(error)
        else:
            yield step, f"another config than the run's (there, here): {'; '.join(differing)}" if differing else None
