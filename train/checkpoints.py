"""Which checkpoint of a run is read: the newest or the best that is intact. `train.saving` writes them.

Process 0 chooses the step to resume from.
"""

from __future__ import annotations

import enum
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from train import manifests, options, processes, runs
from train.config import Config
from train.errors import CheckpointError, ConfigError, RunError, StorageError, UserError
from train.manifests import Damaged, Removed, Stored

Tree = Any

Opened = dict[int, Stored | str]
"""The checkpoints of a folder, by step. If a manifest is damaged, a text in its place says how."""

_TRIES = 20
"""How many times to list the steps again after a running training removed one of them."""


class Restored(NamedTuple):
    """A restored checkpoint.

    Attributes:
        step: of the checkpoint.
        state: NumPy arrays.
        skipped: the damaged checkpoints that were tried before: step to what is wrong with it.
    """

    step: int
    state: Tree
    skipped: dict[int, str]


def _open(folder: Path, step: int) -> Stored | str:
    try:
        return manifests.open_step(folder, step)
    except Removed:
        raise
    except Damaged as error:
        return str(error)


def open_all(folder: Path) -> Opened:
    """All checkpoints of a folder, oldest first. Raises `StorageError` if a manifest cannot be read now."""
    return {step: _open(folder, step) for step in manifests.steps(folder)}


def best_first(opened: Opened) -> list[int]:
    """The steps by validation accuracy, best first, the later of equal ones first; those without an accuracy last.

    Steps with a damaged manifest come first: each may have been the best, and `restore` then names it as skipped.
    """

    def rank(step: int) -> tuple[float, int]:
        stored = opened[step]
        if isinstance(stored, str):
            return math.inf, step
        return (-math.inf if stored.accuracy is None else stored.accuracy), step

    return sorted(opened, key=rank, reverse=True)


def restore(folder: Path, state: Tree, *, config: Config, select: Literal["last", "best"] = "last") -> Restored:
    """Reads the first intact checkpoint.

    Args:
        folder: a run's checkpoints.
        state: a state of the same structure, shapes and types; `jax.ShapeDtypeStruct`s (`jax.eval_shape`) suffice.
        config: the run's config. It must equal the checkpoint's in every field that may not change on resume.
        select: which checkpoint to try first: "last" the newest, "best" the one of best validation accuracy.

    Raises:
        CheckpointError: none is intact, or one belongs to another config or network.
        StorageError: a checkpoint cannot be read at the moment, so it may or may not be intact.
    """
    return _in_state(read(folder, select=select, check=lambda stored: _check_fits(stored, state, config)), state)


def read(
    folder: Path, *, select: Literal["last", "best"] = "last", check: Callable[[Stored], None] = lambda stored: None
) -> Restored:
    """As `restore`, with the arrays by their paths in place of the state.

    Args:
        folder: a run's checkpoints.
        select: which checkpoint to try first.
        check: raises for a checkpoint that cannot be used.

    Raises:
        CheckpointError: none is intact.
        StorageError: a checkpoint cannot be read at the moment.
    """
    for _ in range(_TRIES):
        with suppress(Removed):  # the training that removed it has a newer checkpoint now
            if select == "best":
                opened = open_all(folder)
                return _first_intact(folder, ((step, opened[step]) for step in best_first(opened)), check)
            newest_first = reversed(manifests.steps(folder))
            return _first_intact(folder, ((step, _open(folder, step)) for step in newest_first), check)
    raise CheckpointError(f"{folder}: training removes checkpoints faster than they can be read: wait until it ends")


def _in_state(found: Restored, state: Tree) -> Restored:
    """The arrays of a checkpoint in the structure of a state."""
    leaves = [found.state[path] for path in manifests.flat(state)]
    return found._replace(state=jax.tree.unflatten(jax.tree.structure(state), leaves))


def _first_intact(
    folder: Path, candidates: Iterable[tuple[int, Stored | str]], check: Callable[[Stored], None]
) -> Restored:
    skipped: dict[int, str] = {}
    for step, stored in candidates:
        if isinstance(stored, str):
            skipped[step] = stored
            continue
        check(stored)
        try:
            return Restored(step, stored.read(), skipped)
        except Removed:
            raise
        except Damaged as error:
            skipped[step] = str(error)
    detail = "; ".join(f"step {step}: {reason}" for step, reason in skipped.items()) or "there is none"
    raise CheckpointError(f"{folder}: no intact checkpoint ({detail})")


def _check_fits(stored: Stored, state: Tree, config: Config) -> None:
    """Raises `CheckpointError` for a checkpoint of another config or network; older ones would not fit either."""
    try:
        differing = options.differences(stored.config(), config).fixed
    except ConfigError as error:
        raise CheckpointError(f"{stored.path}: {error}; use the version of this program that wrote it") from error
    if differing:
        raise CheckpointError(f"{stored.path} is of another config (stored, current): {'; '.join(differing)}")
    current = manifests.kinds(state)
    before = {name: leaf.kind for name, leaf in stored.leaves.items()}
    differing = [
        f"{name}: {before.get(name, 'missing')}, {current.get(name, 'missing')}"
        for name in sorted({*current, *before})
        if current.get(name) != before.get(name)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise CheckpointError(
            f"{stored.path} is of another network (stored, current): {'; '.join(differing[:3])}{more}"
        )


class _Outcome(enum.IntEnum):
    """What process 0 found; sent to the others as a number."""

    NOTHING = 0
    FOUND = 1
    UNUSABLE = 2
    UNREADABLE = 3


def resume(run: runs.Run, state: Tree, *, config: Config) -> Restored | None:
    """Reads, in every process, the newest checkpoint that process 0 finds intact; None if there is no checkpoint.

    Newer, damaged checkpoints are renamed to ``damaged-STEP``, because training will write their steps again.

    Raises:
        CheckpointError: there are checkpoints but none is intact, or they belong to another config or network.
        RunError: this process does not see the checkpoint that process 0 has found.
        StorageError: the newest one cannot be read at the moment, or the folder was replaced; nothing is renamed.
    """
    folder = run.checkpoints
    found: Restored | None = None
    failure: UserError | None = None
    outcome = _Outcome.NOTHING
    if processes.is_lead():
        try:
            _check_names(folder)
            if manifests.steps(folder):
                found, outcome = restore(folder, state, config=config), _Outcome.FOUND
                found = found._replace(skipped={**_obstacles(folder), **found.skipped})
        except CheckpointError as error:
            outcome, failure = _Outcome.UNUSABLE, error
        except StorageError as error:
            outcome, failure = _Outcome.UNREADABLE, error
        if found is not None and failure is None:
            runs.check_ours(run)
            _set_aside(folder, found.skipped)
    outcome = _Outcome(processes.from_lead(outcome))
    if failure is not None:
        raise failure
    if outcome is _Outcome.UNUSABLE:
        raise CheckpointError(f"{folder}: process 0 finds no checkpoint to continue from")
    if outcome is _Outcome.UNREADABLE:
        raise StorageError(f"{folder}: process 0 cannot read the newest checkpoint now")
    if outcome is _Outcome.NOTHING:
        return None
    step = processes.from_lead(found.step if found else 0)
    if found is not None:
        return found
    try:
        chosen = [(step, _open(folder, step))]
        return _in_state(_first_intact(folder, chosen, lambda stored: _check_fits(stored, state, config)), state)
    except Removed as error:
        raise RunError(
            f"process {jax.process_index()} does not see {folder / str(step)}, which process 0 continues from: all "
            "processes need a --run-dir on the same file system"
        ) from error


def _check_names(folder: Path) -> None:
    """Raises `CheckpointError` for an entry that Orbax would take for a step, but that is not the folder of one."""
    steps = {str(step) for step in manifests.steps(folder)}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.isdigit() and path.name not in steps:
            raise CheckpointError(f"{path} is not the folder of a step: rename it as it was, or move it away")


def _obstacles(folder: Path) -> dict[int, str]:
    """The steps that hold something other than regular files, which would block Orbax when it begins to write."""
    found = {}
    for step in manifests.steps(folder):
        try:
            manifests.check_files(folder / str(step))
        except Damaged as error:
            found[step] = str(error)
    return found


def _set_aside(folder: Path, damaged: Iterable[int]) -> None:
    for step in damaged:
        aside = folder / f"damaged-{step}"
        shutil.rmtree(aside, ignore_errors=True)
        (folder / str(step)).rename(aside)


def verify(folder: Path, config: Config) -> Iterator[tuple[int, str | None]]:
    """Reads all checkpoints; yields each step with what is wrong with it, or None if it is intact.

    Checkpoints that a running training removes meanwhile are left out.
    """
    for step in manifests.steps(folder):
        try:
            stored = manifests.open_step(folder, step)
            differing = options.differences(stored.config(), config).fixed
            stored.read()
        except Removed:
            continue
        except (Damaged, ConfigError, StorageError) as error:
            yield step, str(error)
        else:
            yield step, f"of another config (stored, current): {'; '.join(differing)}" if differing else None
