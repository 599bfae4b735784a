"""Orbax checkpoints, written asynchronously by all processes together. Each holds a manifest (`train.manifests`)."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from train import manifests, processes, runs, shards
from train.checkpoints import open_all
from train.config import Config
from train.errors import Stopped, StorageError, one_line
from train.manifests import Stored

Tree = Any

_REMOVED = ".removed"
"""The folder to which steps are renamed before they are deleted."""


class _Keep:
    """Tells Orbax which checkpoints to keep: the last two and the one of best validation accuracy."""

    def __init__(self, accuracies: dict[int, float]) -> None:
        self.accuracies = accuracies

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        known = [step for step in steps if step in self.accuracies]
        best = max(known, key=lambda step: (self.accuracies[step], step), default=None)
        return [step in (*steps[-2:], best) for step in steps]


class Writer(NamedTuple):
    """Writes the checkpoints of a run.

    Attributes:
        manager: Orbax's checkpoint manager.
        keep: which checkpoints are kept.
        run: the run folder.
        config: the run's config, written into every manifest.
    """

    manager: ocp.CheckpointManager
    keep: _Keep
    run: runs.Run
    config: Config

    def finish(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
            StorageError: it cannot be written.
        """
        with _storing(self.run):
            self.manager.wait_until_finished()

    def save(self, step: int, state: Tree, accuracy: float | None = None) -> None:
        """Starts writing a checkpoint; the next `save` and the exit of `open_writer` wait until it is written.

        Raises:
            StorageError: this checkpoint or the one before cannot be written.
        """
        runs.check_ours(self.run)
        self.finish()
        _purge(self.run)
        leaves = shards.copied(manifests.flat(state))
        if accuracy is not None:
            self.keep.accuracies[step] = accuracy
        summaries = shards.summarize(leaves)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(manifests.nested(leaves)),
            manifest=ocp.args.JsonSave(manifests.create(summaries, self.config, accuracy)),
        )
        with _storing(self.run), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not self.manager.save(step, args=items, force=True):
                raise ValueError(f"step {step} was not accepted")


@contextmanager
def open_writer(run: runs.Run, config: Config) -> Iterator[Writer]:
    """Opens a run's checkpoints for writing, in all processes together; on exit, waits until all are on disk.

    Raises:
        StorageError: the last checkpoint cannot be written, or an earlier manifest cannot be read now.
    """
    runs.check_ours(run)
    _purge(run)
    stored = open_all(run.checkpoints).items()
    keep = _Keep({step: one.accuracy for step, one in stored if isinstance(one, Stored) and one.accuracy is not None})
    manager_options = ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        cleanup_tmp_directories=True,
        todelete_subdir=_REMOVED,  # one rename, so that a concurrent reader finds the step whole or not at all
        # If a folder cannot be created, asynchronous creation leaves threads that delay the exit for minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    with manifests.quiet():
        with _storing(run):
            manager = ocp.CheckpointManager(run.checkpoints.resolve(), options=manager_options)
        try:
            yield Writer(manager, keep, run, config)
        except BaseException as error:
            # Closing waits for the other processes, so a process that fails alone must not close.
            if jax.process_count() == 1 or isinstance(error, Stopped):
                with suppress(Exception):
                    manager.close()
            raise
        with _storing(run):
            manager.close()
        _purge(run)


def _purge(run: runs.Run) -> None:
    """Deletes the checkpoints that Orbax no longer keeps (process 0 does it for all)."""
    if processes.is_lead():
        shutil.rmtree(run.checkpoints / _REMOVED, ignore_errors=True)


@contextmanager
def _storing(run: runs.Run) -> Iterator[None]:
    """Turns the many kinds of error that writing raises into `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        manifests.settle()
        runs.check_ours(run)  # if the folder vanished or was replaced, report that instead
        raise StorageError(
            f"{run.checkpoints}: a checkpoint cannot be written ({one_line(error)}); earlier ones are kept. Free some "
            "space or repair the disk, and --resume continues"
        ) from error
