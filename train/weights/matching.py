"""Which stored arrays belong to which of a network's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from train.weights import layouts

Arrays = dict[str, np.ndarray]

OWN = ("params/", "batch_stats/")
"""How the names of arrays begin in this program's layout."""


class Matched(NamedTuple):
    """What a network takes from stored arrays.

    Attributes:
        arrays: by the network's own paths, in its shapes and types.
        missing: lines about the network's arrays that keep their initial values.
        unused: the names of stored arrays that the network does not take.
    """

    arrays: Arrays
    missing: list[str]
    unused: list[str]

    def lines(self) -> list[str]:
        """What did not match, at most ten lines of each kind."""
        unused = [f"not used: {name}" for name in self.unused]
        return [line for lines in (self.missing, unused) for line in _shortened(lines)]


def match(network: Mapping[str, Any], stored: Mapping[str, np.ndarray]) -> Matched:
    """Finds the arrays of a network by name and shape.

    Args:
        network: arrays or `jax.ShapeDtypeStruct`s by path, such as ``params/stem/kernel``.
        stored: arrays by name, in this program's layout or one of PyTorch's.

    Returns:
        What fits. An array of another shape, as that of a head for another number of classes, is left out.
    """
    is_own = any(name.startswith(OWN) for name in stored)
    paths = sorted(network)
    arrays, missing, used = {}, [], set()
    for path in paths:
        name = (path if path in stored else None) if is_own else layouts.find(path, paths, stored)
        if name is None:
            missing.append(f"not in the file, so newly initialized: {path}")
            continue
        shape, array = tuple(network[path].shape), stored[name]
        converted = array if is_own else layouts.convert(array, shape)
        if converted.shape != shape:
            missing.append(f"of another shape, so newly initialized: {path} {list(shape)}, stored {list(array.shape)}")
            continue
        arrays[path] = np.asarray(converted, network[path].dtype, order="C")
        used.add(name)
    return Matched(arrays, missing, sorted(_wanted(stored.keys() - used)))


def _wanted(names: Iterable[str]) -> list[str]:
    return [name for name in names if not layouts.IGNORED.search(name)]


def _shortened(lines: list[str], count: int = 10) -> list[str]:
    return lines if len(lines) <= count else [*lines[: count - 1], f"... and {len(lines) - count + 1} more"]
