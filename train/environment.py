"""Versions and hardware: what a result states beside its numbers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax

from train import files

Environment = dict[str, Any]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")

_COMPARED = ("python", "packages", "platform", "devices", "processes")
"""Entries that may change the last bits of a result."""


def describe() -> Environment:
    """Versions and hardware of this process."""
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


def read(path: Path) -> Environment:
    """Reads a stored environment; an unreadable one is empty, since it only informs."""
    try:
        stored = files.read_json(path, limit=1 << 20)
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def differences(stored: Environment, current: Environment) -> list[str]:
    """The entries in which two environments differ, as ``name: stored, current``."""
    if not stored:
        return []
    return [
        f"{name}: {_brief(stored.get(name), current[name])}, {_brief(current[name], stored.get(name))}"
        for name in _COMPARED
        if stored.get(name) != current[name]
    ]


def _brief(value: Any, other: Any) -> str:
    """The part of an entry in which it differs from the other one."""
    if isinstance(value, dict) and isinstance(other, dict):
        return " ".join(f"{name} {value[name]}" for name in value if value[name] != other.get(name))
    if isinstance(value, list):
        kinds = [str(kind) for kind in value]
        return " + ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return str(value)


def _processor() -> str:
    """The processor's model name, or its kind where the system does not tell."""
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
