"""What every kind of data set hands over: its facts, and how to decode examples by index."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from train.data.storage import Fetch


class Records(NamedTuple):
    """A split on disk, not decoded yet.

    Attributes:
        name: names the split in errors and progress bars.
        size: the number of examples.
        class_names: the name of every label.
        probe: finds the image shape ``(h, w, c)``; may have to look into files.
        decode: reads the examples at given indices, in the calling thread.
        cache: the folder for a decoded copy, ``.../SPLIT-FINGERPRINT``: another fingerprint for
            other contents or options.
    """

    name: str
    size: int
    class_names: tuple[str, ...]
    probe: Callable[[], tuple[int, int, int]]
    decode: Fetch
    cache: Path


def default_data_dir() -> Path:
    """``$DEFORMREG_DATA``, or a folder in the user's cache."""
    return Path(os.environ.get("DEFORMREG_DATA") or "~/.cache/deformreg/data").expanduser()
