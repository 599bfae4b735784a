"""A run folder: its files, and the claim of one training on it.

``config.json`` (the full config), ``environment.json`` (versions, devices, settings; number and fingerprint of the
training images), ``metrics.jsonl`` (one line per logged step), ``events*`` (the same for TensorBoard),
``checkpoints/``, ``evaluation.json``, ``.csv`` and ``.md``, ``curve.csv``, ``examples.npz``, ``certified.json`` and
``.md``, pictures, ``report.html``; ``evaluation-*.partial`` and ``certification-*.partial`` of unfinished ones;
``.lock``, held by the training.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from train import environment, files, options, processes
from train.config import Config
from train.errors import RunError, StorageError, printable, say

PATIENCE = 120
"""Seconds that other hosts may need to notice a new file, the loss of a host, or the end of its locks."""


class Run(NamedTuple):
    """A run folder, and the paths in it.

    Attributes:
        folder: the run folder.
        held: the descriptor of its lock file while this process trains in it; None for a run that is only read.
    """

    folder: Path
    held: int | None = None

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def environment(self) -> Path:
        return self.folder / "environment.json"

    @property
    def lock(self) -> Path:
        return self.folder / ".lock"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def profile(self) -> Path:
        return self.folder / "profile"


def short_names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names if these differ, else their paths."""
    names = [printable(folder.name or str(folder)) for folder in folders]
    return names if len(set(names)) == len(names) else [printable(str(folder)) for folder in folders]


def check_name(folder: Path) -> None:
    """Raises `RunError` for a folder that cannot hold a run: on another host, or with a name that Orbax cannot read."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", folder.as_posix()):
        raise RunError(f"{folder} is no path of this host: mount the storage, or choose a folder on a disk")
    path = folder.absolute().as_posix()
    if "\\" in path or path.encode(errors="ignore").decode() != path:
        raise RunError(f"{path!r} has a backslash or is not UTF-8: rename it or choose another folder")


def load_config(folder: Path) -> Config:
    """Reads a run's config.

    Raises:
        RunError: the folder holds no run, or its name cannot be used.
        ConfigError: the config cannot be used.
    """
    check_name(folder)
    path = Run(folder).config
    if not path.is_file():
        raise RunError(
            f"{folder} holds no run: there is no {path.name} in it; give the folder that `fit` named, its --run-dir"
        )
    return options.from_file(path)


def claim(folder: Path, config: Config, *, resume: bool) -> tuple[Run, list[str]]:
    """Checks that a config can be trained, or resumed, in a folder; writes nothing.

    Returns:
        The run, and what has changed since it was last resumed, as ``name: stored, current``.

    Raises:
        RunError: the folder holds a run and `resume` is false, the run's config differs in a field that must not
            change, or the folder cannot be used.
    """
    check_name(folder)
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise RunError(f"{folder} cannot be a run folder, because {above} is a file: choose another --run-dir")
    run = Run(folder)
    _check_links(run)
    if run.config.exists():
        if not resume:
            raise RunError(f"{folder} already holds a run: --resume continues it, --run-dir chooses another folder")
        before = load_config(folder)
        changed = options.differences(before, config)
        if changed.fixed:
            raise RunError(
                f"{folder} was trained with another config (stored, current): {'; '.join(changed.fixed)}"
                f"{_what_would_work(before, config)}"
            )
        stored = environment.read(run.environment)
        return run, changed.free + environment.differences(stored, environment.describe())
    # A process killed before or while it wrote the config leaves its lock and a temporary file.
    ours = (run.lock.name, f".{run.config.name}.")
    if folder.exists() and not all(path.name.startswith(ours) for path in folder.iterdir()):
        raise RunError(f"{folder} is not empty and holds no run: choose another --run-dir")
    return run, []


def _what_would_work(stored: Config, current: Config) -> str:
    """The end of the error for a run whose number of epochs may not become another."""
    if current.epochs == stored.epochs:
        return ""
    if current.epochs < stored.epochs:
        return f"; --epochs may only grow: leave it at {stored.epochs}, or choose another --run-dir"
    if stored.schedule.ends:
        return (
            f"; --epochs may grow under --schedule constant or step, but {stored.schedule.name} ends with the last "
            f"epoch: train {current.epochs} epochs in another --run-dir"
        )
    return ""


def hold(folder: Path, config: Config, *, resume: bool) -> tuple[Run, list[str]]:
    """Makes a folder, locks it until this process ends (process 0 for all), and returns its `claim`.

    With `resume` it waits up to `PATIENCE` seconds for another training to end: processes that have lost one of
    theirs may live that long.

    Raises:
        RunError: another training holds the folder, or as `claim`.
    """
    for waited in _every_second(PATIENCE if resume else 0):
        # Every process waits in step with process 0: a collective operation that is late by half a minute fails.
        if processes.from_lead(processes.is_lead() and _lock(folder)):
            run, changes = claim(folder, config, resume=resume)
            return _held(run), changes
        if resume and waited == 0 and processes.is_lead():
            say(f"{folder} is in use by another training: waiting for its end")
    raise RunError(
        f"{folder} is in use by another training: wait for its end, or choose another --run-dir (if the host of that "
        f"training is lost, remove {Run(folder).lock})"
    )


def _every_second(seconds: int) -> Iterator[int]:
    """Yields 0 at once, then the number of seconds waited, after every second."""
    yield 0
    for waited in range(1, seconds + 1):
        time.sleep(1)
        yield waited


_LOCKS: dict[Path, int] = {}
"""Open lock files of this process, by path. They stay open to its end: closing one would end the lock."""


def _held(run: Run) -> Run:
    """The run with the lock that this process holds on its folder, if it does."""
    return run._replace(held=_LOCKS.get(_place(run)))


def _place(run: Run) -> Path:
    """Where the run's lock is, however its folder is named."""
    return run.folder.resolve() / run.lock.name


def _lock(folder: Path) -> bool:
    """Whether this process holds the lock of a run folder, taken now or before; goes on where there are no locks.

    Raises:
        RunError: the lock file is a link, or not a file.
    """
    run = Run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = _place(run)
    if path in _LOCKS and files.is_open_at(_LOCKS[path], path):
        return True
    while True:
        handle = _open_lock(path)
        if files.lock(handle) is False:
            os.close(handle)
            return False
        if files.is_open_at(handle, path):
            # Where the folder was replaced, an earlier training here still compares its own lock: it stays open.
            _LOCKS[path] = handle
            return True
        os.close(handle)  # the folder was replaced meanwhile


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise _link_error(path) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise RunError(f"{path} is not a regular file: remove it")
    return handle


def _check_links(run: Run) -> None:
    """Raises `RunError` for a link where a training writes: nothing outside a run folder is written.

    What is written by `train.files` replaces a link and needs no check.
    """
    entries = [path for folder in (run.folder, run.checkpoints) if folder.is_dir() for path in sorted(folder.iterdir())]
    for path in chain(entries, run.profile.rglob("*")):
        opened = path in (run.lock, run.checkpoints, run.profile) or path.name.startswith("events")
        if path.is_symlink() and (opened or path.parent != run.folder):
            raise _link_error(path)


def _link_error(path: Path) -> RunError:
    return RunError(f"{path} is a link, and a training writes only into its run folder: put what it points to here")


def check_data(run: Run, training_images: int, data: str | None = None) -> None:
    """Makes sure that the run began with these training images: others would be another training.

    Args:
        run: the run.
        training_images: their number, on which order and schedule depend.
        data: a fingerprint of their contents, if there is one.

    Raises:
        RunError: it began with others.
    """
    stored = environment.read(run.environment)
    before = stored.get("training_images", training_images)
    if before != training_images:
        raise RunError(
            f"{run.folder} was trained on {before!s:.40} images, now there are {training_images}: give it the same "
            "data to continue, or choose another --run-dir"
        )
    if data is not None and stored.get("data") not in (None, data):
        raise RunError(
            f"{run.folder} was trained on other images than there are now, as many of them: give it the same data to "
            "continue, or choose another --run-dir (other versions of pillow, simplejpeg or OpenCV may decode the same "
            "files to other pixels)"
        )


def check_alike(
    config: Config, images: Mapping[str, str], network: Mapping[str, str], asked: Mapping[str, object]
) -> None:
    """Makes sure that all processes train the same: else they would wait for each other, or train several networks.

    Args:
        config: what to train.
        images: the fingerprint of each split, by its name.
        network: types and shapes of the state, by path.
        asked: what is asked for beside the config, by name.

    Raises:
        RunError: another process has other code, versions, settings, options, images or networks.
    """
    splits = {f"{split} images": fingerprint for split, fingerprint in images.items()}
    options_text, arrays = f"{_shared(config)} {dict(asked)}", json.dumps(network, sort_keys=True)
    processes.agree({**environment.shared(), "options": options_text, **splits, "arrays in its network": arrays})


def create(run: Run, config: Config, training_images: int, data: str | None = None) -> None:
    """Makes a claimed run's folders and writes its config and environment (process 0 for all).

    The arguments are those of `check_data`.

    Raises:
        RunError: another process does not see the folder.
        StorageError: the folder is no longer this training's.
    """
    processes.barrier("every process has looked at the folder")
    if processes.is_lead():
        _check_held(run)
        files.write_text(run.config, options.to_json(config))
        run.checkpoints.mkdir(exist_ok=True)
        facts = {"training_images": training_images, "data": data or environment.read(run.environment).get("data")}
        files.write_json(run.environment, {**environment.describe(), **facts})
    processes.barrier("the folder is there")
    check_seen(run.config, run.config.exists, "a --run-dir")


def _shared(config: Config) -> str:
    """The config as text, without the paths that may differ from host to host."""
    data = replace(config.data, data_dir=None, name=config.data.name.rpartition("/")[2])
    return options.to_json(replace(config, data=data, init=None if config.init is None else "given"))


def check_seen(path: Path, is_there: Callable[[], bool], needed: str) -> None:
    """Waits up to `PATIENCE` seconds until all processes, which call this together, see what process 0 has written.

    Args:
        path: the file.
        is_there: whether it is there.
        needed: what puts it on a file system that all share, for the error.

    Raises:
        RunError: in every process, if one does not see it.
    """
    seen: list[int] = []
    for _ in _every_second(PATIENCE):
        for folder in (path.parent.parent, path.parent):
            with suppress(OSError):
                os.listdir(folder)  # NFS remembers that a file was not there, until its folders are listed
        seen = processes.from_all(is_there())
        if all(seen):
            return
    raise RunError(
        f"process {seen.index(0)} does not see {path}, which process 0 has written: all processes need {needed} on the "
        "same file system"
    )


def check_ours(run: Run) -> None:
    """Makes sure, before anything is written, that the folder is there and still that of this training.

    Raises:
        StorageError: the run folder has vanished, or was replaced while this process held it.
    """
    if not run.config.exists():
        raise StorageError(f"{run.folder} has vanished or cannot be reached: {run.config.name} is gone")
    _check_held(run)


def check_still_ours(folder: Path) -> None:
    """`check_ours` for a folder that this process may have trained in."""
    check_ours(_held(Run(folder)))


def _check_held(run: Run) -> None:
    if run.held is not None and not files.is_open_at(run.held, run.lock):
        raise StorageError(
            f"{run.folder} is no longer the folder of this training: it or its {run.lock.name} was removed or "
            "replaced, so nothing more is written; train again in another --run-dir"
        )
