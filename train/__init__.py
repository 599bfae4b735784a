"""The training application: `python -m train`, or from Python::

from train import Config, fit
fit(Config(epochs=3), "runs/mine")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.config import Config
    from train.loop import fit
    from train.methods import Method
    from train.task import Splits

__all__ = ["Config", "Method", "Splits", "fit"]

_ROOMS = {"Config": "train.config", "Method": "train.methods", "Splits": "train.task", "fit": "train.loop"}


def __getattr__(name: str) -> Any:
    # Imported when asked for: the memory allocator must be set before JAX is imported, and most commands need less.
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_ROOMS[name]), name)
