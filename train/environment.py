"""Versions and hardware: what a result states beside its numbers."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import jax

import deformreg
from train import files

Environment = dict[str, Any]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")

_COMPARED = ("python", "packages", "platform", "devices", "processes", "processor", "cores", "settings")
"""Entries that may change the last bits of a result."""

MUST_AGREE = ("python", "packages", "platform", "settings")
"""Entries that must be the same in all processes, and where an unfinished work is continued; other hardware may do."""

_OPTIONS = (
    "jax_allow_f16_reductions",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_enable_custom_prng",
    "jax_enable_x64",
    "jax_exec_time_optimization_effort",
    "jax_high_dynamic_range_gumbel",
    "jax_numpy_dtype_promotion",
    "jax_optimization_level",
    "jax_random_seed_offset",
    "jax_softmax_custom_jvp",
    "jax_threefry_partitionable",
)
"""JAX's options, each also an environment variable, that change types, random numbers or how programs are compiled."""

_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
"""Environment variables that do."""


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
        "cores": _cores(),
        "settings": _settings(),
    }


def code() -> str:
    """A hash of the source of `deformreg` and `train`: in a checkout it changes without the version."""
    found = hashlib.sha256()
    for package in (Path(deformreg.__file__).parent, Path(__file__).parent):
        for path in sorted(package.rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


def shared() -> dict[str, str]:
    """What must be the same in all processes, for `train.processes.agree`."""
    here = describe()

    def text(*names: str) -> str:
        return json.dumps([here[name] for name in names], sort_keys=True)

    return {
        "code of this program": code(),
        "versions of Python and packages": text("python", "packages"),
        "settings of JAX and XLA (JAX_*, XLA_FLAGS)": text("platform", "settings"),
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
        f"{name}: {_brief(stored[name], current[name])}, {_brief(current[name], stored[name])}"
        for name in _COMPARED
        if name in stored and stored[name] != current[name]
    ]


def _brief(value: Any, other: Any) -> str:
    """The part of an entry in which it differs from the other one."""
    if isinstance(value, dict) and isinstance(other, dict):
        names = sorted({*value, *other})
        return " ".join(f"{name} {value.get(name)}" for name in names if value.get(name) != other.get(name))
    if isinstance(value, list):
        kinds = [str(kind) for kind in value]
        return " + ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return str(value)


def _cores() -> int | None:
    """The processor's cores that this process may use: XLA divides its work, and so its sums, by their number."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _settings() -> dict[str, Any]:
    """What changes results among the options of JAX and XLA; None for those that are not set, or not known here."""
    options: dict[str, Any] = {}
    for name in _OPTIONS:
        value = getattr(jax.config, name, jax.config.values.get(name))
        options[name] = value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
    return {**options, **{name: os.environ.get(name) or None for name in _VARIABLES}}


def _processor() -> str:
    """The processor's model name, or its kind where the system does not tell."""
    return _processor_fact("model name") or platform.processor() or platform.machine()


def processor_features() -> str:
    """The processor's instruction sets; empty where the system does not tell."""
    return _processor_fact("flags") or _processor_fact("Features")


def _processor_fact(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
