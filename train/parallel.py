"""Data parallelism: one step function, run over all devices by `pmap` or by sharded `jit`.

A step (`train.step.Step`) is told the name of a mapped axis, works on one device's share and averages over the axis
itself; or it is told none, sees the global batch, and the compiler inserts the communication. The state is never
stacked: both engines take and return the same replicated arrays, so that checkpoints fit either.

Under `jit` the state may also be sharded: each device keeps its part of every large array, and the step gathers the
parameters for its passes.

References:
    Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020.
    Xu et al., "Automatic Cross-Replica Sharding of Weight Update in Data-Parallel Training", 2020 (arXiv 2004.13336).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train.errors import ConfigError

AXIS = "data"

SMALLEST_SHARDED = 4096
"""Elements of the smallest array that is sharded. Smaller ones take no memory, and gathering each takes time."""


class Engine(NamedTuple):
    """How steps run.

    Attributes:
        devices: how many, over all processes.
        compile: ``step -> compiled step``; donates the state.
        put_state: moves a tree of arrays to the devices, copied, so that donation cannot reach the caller's.
        put_batch: moves a process's share of a batch, dividing it over the devices.
        feed: prepares a process's share of a batch for one step. On the CPUs of one process the step takes it as it
            is: a transfer would take five times as long.
        whole: a state as arrays over the devices of all processes, as `jax.jit` takes them; shares the buffers.
        gather: what `whole` returns with all that an evaluation reads on every device.
        divide: moves a process's share of examples, divided over all devices, for `jax.jit`.
    """

    devices: int
    compile: Callable[..., Any]
    put_state: Callable[[Any], Any]
    put_batch: Callable[[Any], Any]
    feed: Callable[[Any], Any]
    whole: Callable[[Any], Any]
    gather: Callable[[Any], Any]
    divide: Callable[[Any], Any]


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Where the arrays of a tree lie when they are sharded over a mesh, as a tree of `NamedSharding`s.

    An array is divided along the longest axis that the number of devices divides, the first of equally long ones. One
    that has none, or fewer than `SMALLEST_SHARDED` elements, lies whole on every device.
    """

    def place(leaf: Any) -> NamedSharding:
        fitting = [axis for axis, length in enumerate(leaf.shape) if length and length % mesh.size == 0]
        if not fitting or math.prod(leaf.shape) < SMALLEST_SHARDED:
            return NamedSharding(mesh, P())
        longest = max(fitting, key=lambda axis: (leaf.shape[axis], -axis))
        return NamedSharding(mesh, P(*[None] * longest, AXIS))

    return jax.tree.map(place, tree)


def on_sharded_state(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A step that takes and returns a sharded state, for `jax.jit`."""
    replicated = NamedSharding(mesh, P())

    def stepped(state: Any, batch: Any) -> Any:
        # Said explicitly: left to itself, the compiler may divide the activations by channels instead. Optimizer and
        # averages need no gathering: the compiler computes each part of the new state where it is kept.
        state = state._replace(params=jax.lax.with_sharding_constraint(state.params, replicated))
        state, metrics = step(state, batch)
        return jax.lax.with_sharding_constraint((state, metrics), (shardings(state, mesh), replicated))

    return stepped


def make_engine(
    kind: Literal["pmap", "jit"], *, devices: int = 0, batch_size: int, shard_state: bool = False
) -> Engine:
    """Prepares an engine.

    Args:
        kind: ``"pmap"`` or ``"jit"``.
        devices: how many of the visible devices; 0 for all. Several processes always use all.
        batch_size: examples per step over all devices.
        shard_state: shard the state over the devices, as `shardings` says; with ``"jit"`` only.

    Raises:
        ConfigError: more devices than there are, a batch that does not divide among them, or a sharded state with pmap.
    """
    if shard_state and kind != "jit":
        raise ConfigError("--shard-state needs --parallel jit: pmap keeps the whole state on every device")
    used = _used(devices, batch_size)
    return _jit_engine(used, shard_state) if kind == "jit" else _pmap_engine(used)


def _used(devices: int, batch_size: int) -> list[jax.Device]:
    """The first of the visible devices, or all; raises if they do not fit the processes or the batch."""
    visible = jax.devices()
    if devices > len(visible):
        raise ConfigError(f"--devices must be at most {len(visible)}, the visible devices, got {devices}")
    if devices and jax.process_count() > 1 and devices != len(visible):
        raise ConfigError(f"--devices must be 0 or {len(visible)} with several processes, got {devices}")
    used = visible[: devices or len(visible)]
    if batch_size % len(used):
        raise ConfigError(f"--batch-size must divide among {len(used)} devices, got {batch_size}")
    return used


def _jit_engine(used: list[jax.Device], shard_state: bool) -> Engine:
    """Compiles with `jax.jit`: a batch is divided over the mesh, the state replicated or sharded."""
    mesh = _mesh(used)
    replicated, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))

    def compile_sharded(step: Callable[..., Any]) -> Callable[..., Any]:
        if shard_state:
            return jax.jit(on_sharded_state(step, mesh), in_shardings=(None, divided), donate_argnums=0)
        return jax.jit(step, in_shardings=(replicated, divided), out_shardings=replicated, donate_argnums=0)

    @partial(jax.jit, out_shardings=replicated)
    def gather_tree(tree: Any) -> Any:
        return tree

    def gather(state: Any) -> Any:
        params, average = gather_tree((state.params, state.average))
        return state._replace(params=params, average=average)

    def put_state(tree: Any) -> Any:
        return _put(tree, shardings(tree, mesh)) if shard_state else _replicate(mesh, tree)

    divide = partial(_divide, divided)
    return Engine(
        devices=len(used),
        compile=compile_sharded,
        put_state=put_state,
        put_batch=divide,
        feed=_same if _is_on_host(used) else divide,
        whole=_same,
        gather=gather if shard_state else _same,
        divide=divide,
    )


def _pmap_engine(used: list[jax.Device]) -> Engine:
    """Compiles with `jax.pmap`: every device has a leading row of the batch, and the same state."""
    mesh = _mesh(used)
    replicated, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    local = sum(device.process_index == jax.process_index() for device in used)

    def compile_mapped(step: Callable[..., Any]) -> Callable[..., Any]:
        mapped: Callable[..., Any] = jax.pmap(
            partial(step, axis=AXIS), AXIS, in_axes=(None, 0), out_axes=None, devices=used, donate_argnums=0
        )
        return mapped

    def fold(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.reshape(local, -1, *leaf.shape[1:]), tree)

    def put_batch(tree: Any) -> Any:
        if jax.process_count() > 1:
            return fold(tree)
        return jax.device_put(fold(tree), divided)  # one leading row per device

    def globalize(leaf: Any) -> Any:
        # With several processes pmap returns arrays over this process's devices only.
        shards = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, replicated, shards)

    return Engine(
        devices=len(used),
        compile=compile_mapped,
        put_state=partial(_replicate, mesh),
        put_batch=put_batch,
        feed=fold if _is_on_host(used) else put_batch,
        whole=partial(jax.tree.map, globalize),
        gather=_same,
        divide=partial(_divide, divided),
    )


def _mesh(used: list[jax.Device]) -> Mesh:
    return Mesh(np.array(used), (AXIS,), axis_types=(AxisType.Auto,))


def _is_on_host(used: list[jax.Device]) -> bool:
    """Whether the devices are the CPUs of a single process."""
    return bool(used[0].platform == "cpu" and jax.process_count() == 1)


def _same(tree: Any) -> Any:
    return tree


def _put(tree: Any, shardings: Any) -> Any:
    """A tree of arrays of the host, copied to where a tree of shardings says."""

    def put(leaf: Any, sharding: NamedSharding) -> Array:
        local = np.asarray(leaf)
        return jax.make_array_from_callback(local.shape, sharding, lambda index: np.array(local[index], copy=True))

    return jax.tree.map(put, tree, shardings)


def _replicate(mesh: Mesh, tree: Any) -> Any:
    return _put(tree, jax.tree.map(lambda _: NamedSharding(mesh, P()), tree))


def _divide(divided: NamedSharding, tree: Any) -> Any:
    """A process's share of examples as arrays divided over all devices."""
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(divided, leaf), tree)
