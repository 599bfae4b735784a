"""A run folder: what is in it, and how it is written.

``config.json`` (the full config), ``environment.json`` (versions, devices, size of the data), ``metrics.jsonl`` (one
line per logged step), ``events*`` (the same for TensorBoard), ``checkpoints/``, ``evaluation.json``, ``.csv`` and
``.md``, ``curve.csv``, ``certified.json`` and ``.md``, pictures; ``.lock``, which its training holds.
"""

from __future__ import annotations

import errno
import functools
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

from train import config as configs
from train import processes

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


FREE = (
    "devices",
    "parallel",
    "data.data_dir",
    "model.remat",
    "checkpoint_every",
    "log_every",
    "select",
    "evaluation",
    "max_rollbacks",
    "data.max_corrupt",
)
"""Fields that may change when a run is continued: they say where, how fast and what else, not what is computed."""

T = TypeVar("T")

PATIENCE = 120
"""Seconds that other hosts may need to notice: a new file, the loss of a host, the end of its locks."""

_PASSING = {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}


class RunError(ValueError):
    """A run folder cannot be used; the message is one line with the culprit and the remedy."""


class StorageError(RuntimeError):
    """The disk fails a run that is under way; the message is one line with the culprit and the remedy."""


def is_storage_failure(error: BaseException) -> bool:
    """Whether an error means that a disk is full or does not answer, rather than that a path was ill chosen."""
    return isinstance(error, OSError) and error.errno in {*_PASSING, errno.ENOSPC, errno.EDQUOT}


class Run(NamedTuple):
    """The paths of a run folder."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def lock(self) -> Path:
        return self.folder / ".lock"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def short_names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names where they differ, else as much of the paths as it takes."""
    names = [folder.name or str(folder) for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def check_name(folder: Path) -> None:
    """Raises `RunError` for a folder that Orbax cannot read checkpoints from: not UTF-8, or a backslash in it."""
    path = folder.absolute().as_posix()
    if "\\" in path or path.encode(errors="ignore").decode() != path:
        raise RunError(f"{path!r} has a backslash or is not UTF-8: rename it or choose another folder")


def patiently(action: Callable[[], T]) -> T:
    """Up to four tries in three seconds, as long as the errors are some that a network file system may get over."""
    for pause in (0.2, 0.6, 2.0):
        try:
            return action()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        time.sleep(pause)
    return action()


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: a reader never sees half of it.

    Errors that a network file system may get over are met as `patiently` does.
    """
    patiently(lambda: _write_whole(path, data))


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # writing and flushing do not say where
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_text` of JSON; refuses NaN and infinities, which are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


class Differences(NamedTuple):
    """How two configs differ, as ``name: there, here``.

    Attributes:
        fixed: in what may not change when a run is continued.
        free: in the rest.
    """

    fixed: list[str]
    free: list[str]


def config_tree(config: configs.Config) -> dict[str, Any]:
    """The config as JSON values."""
    tree: dict[str, Any] = json.loads(configs.to_json(config))
    return tree


def config_differences(there: dict[str, Any], here: configs.Config) -> Differences:
    """Compares a stored config with this one.

    Raises:
        ConfigError: the stored one cannot be used.
    """
    lines = configs.differences(configs.from_json(json.dumps(there)), here)
    free = [line for line in lines if line.partition(":")[0].startswith(FREE)]
    return Differences([line for line in lines if line not in free], free)


def hold(folder: Path, config: configs.Config, *, resume: bool) -> tuple[Run, list[str]]:
    """`claim`s a folder, which it makes, for this training alone, process 0 for all, until the process ends.

    With `resume` it waits up to `PATIENCE` seconds for another training to end: for so long may processes that have
    lost one of theirs live on.

    Raises:
        RunError: another training has the folder, or as `claim`.
    """
    run = Run(folder)
    for second in range(1 + PATIENCE * resume):
        if second:
            time.sleep(1)
        # All wait in step: where one is late by half a minute, others give it up.
        if processes.from_lead(processes.is_lead() and _take(run)):
            return claim(folder, config, resume=resume)
        if resume and not second and processes.is_lead():
            print(f"{folder} is in use by another training: waiting for its end", file=sys.stderr)
    raise RunError(
        f"{folder} is in use by another training: wait for its end, or choose another --run-dir (if the host of that "
        f"training is lost, remove {run.lock})"
    )


def _take(run: Run) -> bool:
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        _lock(run.lock.resolve())
    except BlockingIOError:
        return False
    return True


@functools.cache
def _lock(path: Path) -> int:
    """Locks a file for the rest of this process's life, however it ends; where there are no locks, goes on without.

    Returns:
        The descriptor, never closed: its end would be the lock's.

    Raises:
        BlockingIOError: another process has it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except (ImportError, OSError):
        pass  # neither the system nor the file system need have locks
    return handle


def claim(folder: Path, config: configs.Config, *, resume: bool) -> tuple[Run, list[str]]:
    """Looks whether a run can live in a folder, or go on there; writes nothing.

    Returns:
        The run, and what has changed since it was last continued, as ``name: there, here``.

    Raises:
        RunError: the folder holds a run and `resume` is false, its config differs in what must not change, or the
            folder's name will not do.
    """
    check_name(folder)
    run = Run(folder)
    if run.config.exists():
        if not resume:
            raise RunError(f"{folder} already holds a run: --resume continues it, --run-dir chooses another folder")
        differences = config_differences(config_tree(load_config(folder)), config)
        if differences.fixed:
            raise RunError(f"{folder} was trained with another config (there, here): {'; '.join(differences.fixed)}")
        return run, differences.free + _environment_differences(folder)
    # A process killed before it wrote the config, or while it did, leaves its lock and a temporary file.
    ours = (run.lock.name, f".{run.config.name}.")
    if folder.exists() and not all(path.name.startswith(ours) for path in folder.iterdir()):
        raise RunError(f"{folder} is not empty and holds no run: choose another --run-dir")
    return run, []


def check_data(run: Run, training_images: int) -> None:
    """Raises `RunError` for another number of images than the run began with: order and schedule would be others."""
    there = _stored_environment(run.folder).get("training_images", training_images)
    if there != training_images:
        raise RunError(
            f"{run.folder} was trained on {there!s:.40} images, now there are {training_images}: give it the same data "
            "to continue, or choose another --run-dir"
        )


def _stored_environment(folder: Path) -> dict[str, Any]:
    """What a run's ``environment.json`` says; empty where it says nothing, for it only informs."""
    try:
        stored = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _environment_differences(folder: Path) -> list[str]:
    there = _stored_environment(folder)
    if not there:
        return []
    here = environment()
    names = [
        name for name in ("python", "packages", "platform", "devices", "processes") if there.get(name) != here[name]
    ]
    return [f"{name}: {_brief(there.get(name), here[name])}, {_brief(here[name], there.get(name))}" for name in names]


def _brief(value: Any, other: Any) -> str:
    """A value of the environment, as far as it differs from the other one."""
    if isinstance(value, dict) and isinstance(other, dict):
        return " ".join(f"{name} {value[name]}" for name in value if value[name] != other.get(name))
    if isinstance(value, list):
        kinds = [str(kind) for kind in value]
        return " + ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return str(value)


def create(run: Run, config: configs.Config, training_images: int) -> None:
    """Makes a claimed run's folders, process 0 for all, and writes config, environment and the size of the data.

    Raises:
        RunError: another process does not see the folder.
    """
    processes.barrier("every process has looked at the folder")
    if processes.is_lead():
        write_text(run.config, configs.to_json(config))
        run.checkpoints.mkdir(exist_ok=True)
        write_json(run.folder / "environment.json", {**environment(), "training_images": training_images})
    processes.barrier("the folder is there")
    for second in range(1 + PATIENCE):
        if second:
            time.sleep(1)
        seen = processes.from_all(_seen(run.config))
        if all(seen):
            return
    raise RunError(
        f"process {seen.index(0)} does not see {run.config}, which process 0 has written: all processes need a "
        "--run-dir on the same file system"
    )


def _seen(path: Path) -> bool:
    """Whether a new file is there. NFS remembers for a while that it was not, unless its folders are listed."""
    for folder in (path.parent.parent, path.parent):
        with suppress(OSError):
            os.listdir(folder)
    return path.exists()


def check_there(run: Run) -> None:
    """Raises `StorageError` if the run folder has vanished, rather than begin an incomplete one."""
    if not run.config.exists():
        raise StorageError(f"{run.folder} has vanished or cannot be reached: {run.config.name} is gone")


def load_config(folder: Path) -> configs.Config:
    """Reads a run's config.

    Raises:
        RunError: the folder holds no run, or the folder's name will not do.
        ConfigError: its config cannot be used.
    """
    check_name(folder)
    path = Run(folder).config
    if not path.is_file():
        raise RunError(f"{folder} holds no run: there is no {path.name} in it")
    return configs.from_file(path)


def environment() -> dict[str, Any]:
    """Versions and hardware, as a result needs them beside it."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": devices[0].platform,
        "devices": [device.device_kind for device in devices],
        "processes": jax.process_count(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    """The processor's name, or where the system does not tell, its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
