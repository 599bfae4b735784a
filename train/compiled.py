"""Compiled programs kept on disk: a training that is started again does not compile again.

JAX writes and reads the entries (its persistent compilation cache). It writes them in place, so a killed process leaves
half of one behind, and an entry with a flipped bit may load and compute something else. Every entry therefore gets a
checksum as soon as it is written, and at the start all entries without their checksum are removed: they cost a
compilation, never a wrong number. An entry is code: it is only read from a folder that nobody else can write to.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import jax

from train import environment, files, processes
from train.data.kind import default_data_dir, user_path
from train.errors import ConfigError, DataError, one_line, say

OFF = "off"

_LARGEST = 2 << 30
"""Bytes of all entries of one kind of machine; the oldest go first."""

_MIN_SECONDS = 0.3
"""Programs that compile in less are not kept; the dozens of small ones of a start would take longer to check."""

_ENTRY, _CHECKSUM = "-cache", ".sha256"


def keep(option: str | None) -> Path | None:
    """Makes JAX keep compiled programs, and removes damaged ones. Call it when the devices are known.

    Args:
        option: a folder, ``"off"``, or None: the folder that ``$JAX_COMPILATION_CACHE_DIR`` names, else ``compiled``
            beside the data sets of this user. ``$JAX_ENABLE_COMPILATION_CACHE=0`` turns the latter off.

    Returns:
        The folder of this kind of machine; None if programs are not kept, or JAX keeps them as its variable says.

    Raises:
        ConfigError: the folder that the option names cannot be used.
    """
    if option == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    settings = jax.config.values
    if option is None and (
        settings["jax_compilation_cache_dir"] is not None or not settings["jax_enable_compilation_cache"]
    ):
        return None
    if option is not None and "://" in option:
        raise ConfigError(
            f"--compilation-cache must be a local folder, got {option}: remote ones go to $JAX_COMPILATION_CACHE_DIR"
        )
    try:
        root = default_data_dir() / "compiled" if option is None else user_path(option)
        if root.is_file():
            raise NotADirectoryError("it is a file")
        folder = Path(os.path.abspath(root)) / _machine()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(folder)
        _remove_damaged(folder)
    except (OSError, DataError) as error:
        if option is not None:
            raise ConfigError(
                f"--compilation-cache {option} cannot be used ({one_line(error)}): name a folder of your own, or off"
            ) from error
        say(f"compiled programs are not kept: {one_line(error)}")
        return None
    _use(folder)
    return folder


def _machine() -> str:
    """Names the versions, the device and the processor that programs are compiled for; JAX's keys tell the rest apart.

    On CPUs its keys leave out the processor: a program of another one may stop at an unknown instruction.
    """
    here = environment.describe()
    packages = [here["packages"][name] for name in ("jax", "jaxlib")]
    facts = [packages, here["platform"], here["processor"], here["cores"], environment.processor_features()]
    return f"{here['platform']}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"


def _check_private(folder: Path) -> None:
    """Raises `OSError` if somebody else could have written what is in the folder."""
    if not hasattr(os, "getuid"):
        return
    facts = folder.stat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to, or can be written by, another user, whose programs would run here")


def _use(folder: Path) -> None:
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_SECONDS)

    def seal(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration") and processes.is_lead():  # the only process that writes
            with suppress(OSError):
                _seal(folder)

    if folder not in _sealed:
        _sealed.add(folder)
        jax.monitoring.register_event_duration_secs_listener(seal)


_sealed: set[Path] = set()
"""Folders whose new entries already get checksums in this process."""


def _entries(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.name.endswith(_ENTRY))


def _checksum(entry: Path) -> Path:
    return entry.with_name(entry.name + _CHECKSUM)


def _digest(entry: Path) -> str:
    with entry.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(folder: Path) -> None:
    """Writes the checksums of new entries.

    If another process is still writing one, the checksum is that of a part, and the next start removes the entry.
    """
    for entry in _entries(folder):
        if not _checksum(entry).exists():
            files.write_text(_checksum(entry), _digest(entry))


def _remove_damaged(folder: Path) -> None:
    """Removes entries that do not have their checksum, and the oldest of too many."""
    kept = []
    for entry in _entries(folder):
        with suppress(FileNotFoundError):  # another training in the same cache removes entries, too
            if _checksum(entry).read_text(errors="replace") == _digest(entry):
                kept.append((entry.stat().st_mtime, entry.stat().st_size, entry))
                continue
        _remove(entry)
    total = 0
    for _, size, entry in sorted(kept, reverse=True):
        total += size
        if total > _LARGEST:
            _remove(entry)


def _remove(entry: Path) -> None:
    for path in (entry, _checksum(entry)):
        path.unlink(missing_ok=True)  # another process may be doing the same
