"""What every kind of data set hands over: its facts, and how to decode examples by index."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.data.errors import user_path
from train.data.storage import Arrays


class Records(NamedTuple):
    """A split on disk, not decoded yet.

    Attributes:
        name: names the split in errors and progress bars.
        size: the number of examples.
        class_names: the name of every label.
        probe: finds the image shape ``(h, w, c)``; may have to look into files, and past as many unreadable ones as
            its argument says.
        decode: reads the examples at given indices as images of a given shape, in the calling thread.
        cache: the folder for a decoded copy, ``.../SPLIT-OPTIONS-FINGERPRINT``: another fingerprint for other
            contents.
    """

    name: str
    size: int
    class_names: tuple[str, ...]
    probe: Callable[[int], tuple[int, int, int]]
    decode: Callable[[np.ndarray, tuple[int, int, int]], Arrays]
    cache: Path


def default_data_dir() -> Path:
    """``$DEFORMREG_DATA``, or a folder in the user's cache."""
    return user_path(os.environ.get("DEFORMREG_DATA") or "~/.cache/deformreg/data")
