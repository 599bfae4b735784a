"""A run folder: what is in it, and how it is written.

``config.json`` (the full config), ``environment.json`` (package versions, devices), ``metrics.jsonl`` (one line per
logged step), ``events*`` (the same for TensorBoard), ``checkpoints/``, ``evaluation.json``, ``.csv`` and ``.md``,
``curve.csv``, pictures.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from train import config as configs

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


class RunError(ValueError):
    """A run folder cannot be used; the message is one line with the culprit and the remedy."""


class Run(NamedTuple):
    """The paths of a run folder."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation.json"


def short_names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names where they differ, else as much of the paths as it takes."""
    names = [folder.name or str(folder) for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_text` of JSON; refuses NaN and infinities, which are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def create(folder: Path, config: configs.Config, *, resume: bool) -> Run:
    """Makes a run folder, or opens the one to resume.

    Raises:
        RunError: the folder holds a run and `resume` is false, or its config differs in what must not change.
    """
    run = Run(folder)
    if run.config.exists():
        if not resume:
            raise RunError(f"{folder} already holds a run: --resume continues it, --run-dir chooses another folder")
        changed = configs.differences(load_config(folder), config)
        if changed:
            raise RunError(f"{folder} was trained with another config (there, here): {'; '.join(changed)}")
    elif folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty and holds no run: choose another --run-dir")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(run.config, configs.to_json(config))
    write_json(folder / "environment.json", environment())
    return run


def load_config(folder: Path) -> configs.Config:
    """Reads a run's config.

    Raises:
        RunError: the folder holds no run.
        ConfigError: its config cannot be used.
    """
    path = Run(folder).config
    if not path.is_file():
        raise RunError(f"{folder} holds no run: there is no {path.name} in it")
    return configs.from_json(path.read_text(encoding="utf-8"))


def environment() -> dict[str, Any]:
    """Versions and hardware, as a result needs them beside it."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": devices[0].platform,
        "devices": [device.device_kind for device in devices],
        "processes": jax.process_count(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """The lines of the metric log; a line cut off by a crash is left out."""
    if not run.metrics.is_file():
        return []
    lines = []
    for line in run.metrics.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


class MetricLog:
    """Appends metrics to the JSONL log and to TensorBoard events, from a given step on."""

    def __init__(self, run: Run, *, after_step: int = 0) -> None:
        from tensorboardX import SummaryWriter

        # A resumed run repeats the steps after its checkpoint: their old lines go.
        kept = [line for line in read_metrics(run) if line["step"] <= after_step]
        write_text(run.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self.seconds = max((line.get("seconds", 0.0) for line in kept), default=0.0)
        self._file = run.metrics.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(run.folder), purge_step=after_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._events.close()
