"""The arrays of a state as they are saved: whole, or in the parts that the devices keep, each with its checksum.

An array that every device has whole is copied to the host. Of a sharded one (`train.parallel.shardings`) a process
copies and checks its own devices' parts only, and Orbax writes them from there, so that no host copies the whole state.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train import processes

Leaves = dict[str, Any]


class Leaf(NamedTuple):
    """What a manifest says of an array.

    Attributes:
        kind: type and shape as ``float32[3, 4]``.
        crcs: the CRC-32 of its bytes, or of the bytes of each of its equal parts.
        axis: along which it is divided into parts.
    """

    kind: str
    crcs: tuple[int, ...]
    axis: int = 0

    def to_json(self) -> list[Any]:
        """``[kind, crc]``, or of an array in parts ``[kind, axis, crc, crc, ...]``."""
        return [self.kind, *([self.axis] if len(self.crcs) > 1 else []), *self.crcs]

    @classmethod
    def from_json(cls, value: Any) -> Leaf:
        """Reads what `to_json` wrote. Raises `TypeError` or `ValueError` for anything else."""
        kind, *numbers = value
        if type(kind) is not str or len(numbers) in (0, 2) or any(type(number) is not int for number in numbers):
            raise ValueError(f"not what a manifest says of an array: {value!r:.80}")
        axis, *crcs = numbers if len(numbers) > 1 else [0, *numbers]
        return cls(kind, tuple(crcs), axis)

    def damage(self, array: np.ndarray) -> str | None:
        """How an array that was read differs from this one; None if it is the same to the bit."""
        count = len(self.crcs)
        divides = count == 1 or (0 <= self.axis < array.ndim and array.shape[self.axis] % count == 0)
        if describe(array) != self.kind or not divides:
            return "the type"
        parts = np.split(array, count, self.axis) if count > 1 else [array]
        for index, (part, crc) in enumerate(zip(parts, self.crcs, strict=True), 1):
            if _crc(part) != crc:
                return "the checksum" + (f" of part {index} of {count}" if count > 1 else "")
        return None


def describe(leaf: Any) -> str:
    """Type and shape, ``float32[3, 4]``, of an array or a `jax.ShapeDtypeStruct`."""
    return f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"


def copied(leaves: Leaves) -> Leaves:
    """Copies that the next step, which may reuse the buffers of the state, does not change while they are written."""
    sharded = {path: leaf for path, leaf in leaves.items() if _is_sharded(leaf)}
    whole = {path: np.array(leaf) for path, leaf in leaves.items() if path not in sharded}
    return {**whole, **_copied_on_devices(sharded)}


@jax.jit
def _copied_on_devices(leaves: Leaves) -> Leaves:
    return {path: jnp.copy(leaf) for path, leaf in leaves.items()}


def summarize(leaves: Leaves) -> dict[str, Leaf]:
    """What a manifest says of the arrays of `copied`; all processes together, each computing what it has."""
    sharded = {path: leaf for path, leaf in leaves.items() if _is_sharded(leaf)}
    found = {path: Leaf(describe(leaf), (_crc(leaf),)) for path, leaf in leaves.items() if path not in sharded}
    axes = {path: _axis(leaf) for path, leaf in sharded.items()}
    mine = {path: _own_crcs(leaf, axes[path]) for path, leaf in sharded.items()}
    if mine:
        all_crcs = processes.largest_of_all(np.stack(list(mine.values())))
        for path, crcs in zip(sharded, all_crcs, strict=True):
            found[path] = Leaf(describe(sharded[path]), tuple(map(int, crcs)), axes[path])
    return {path: found[path] for path in leaves}


def _is_sharded(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not leaf.is_fully_replicated


def _axis(leaf: jax.Array) -> int:
    """The one axis along which an array is divided."""
    part = leaf.sharding.shard_shape(leaf.shape)
    (axis,) = [axis for axis, lengths in enumerate(zip(leaf.shape, part, strict=True)) if lengths[0] != lengths[1]]
    return axis


def _own_crcs(leaf: jax.Array, axis: int) -> np.ndarray:
    """The CRC-32 of every part that this process has, 0 for the others."""
    crcs = np.zeros(leaf.sharding.num_devices, np.uint32)
    for shard in leaf.addressable_shards:
        start = shard.index[axis].start or 0
        crcs[start // shard.data.shape[axis]] = _crc(np.asarray(shard.data))
    return crcs


def _crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)
