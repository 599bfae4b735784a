"""Data parallelism: one step function, run over all devices by `pmap` or by sharded `jit`.

A step (`train.step.Step`) is told the name of a mapped axis, works on one device's share and averages over the axis
itself; or it is told none, sees the global batch, and the compiler inserts the communication. The state is never
stacked: both engines take and return the same replicated arrays, so that checkpoints fit either.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train.errors import ConfigError

AXIS = "data"


class Engine(NamedTuple):
    """How steps run.

    Attributes:
        devices: how many, over all processes.
        compile: ``step -> compiled step``; donates the state.
        put_state: moves a tree of arrays to every device, copied, so that donation cannot reach the caller's.
        put_batch: moves a process's share of a batch, dividing it over the devices.
        feed: prepares a process's share of a batch for one step. On the CPUs of one process the step takes it as it
            is: a transfer would take five times as long.
        whole: a state as arrays over the devices of all processes, as `jax.jit` takes them; shares the buffers.
        divide: moves a process's share of examples, divided over all devices, for `jax.jit`.
    """

    devices: int
    compile: Callable[..., Any]
    put_state: Callable[[Any], Any]
    put_batch: Callable[[Any], Any]
    feed: Callable[[Any], Any]
    whole: Callable[[Any], Any]
    divide: Callable[[Any], Any]


def make_engine(kind: Literal["pmap", "jit"], *, devices: int = 0, batch_size: int) -> Engine:
    """Prepares an engine.

    Args:
        kind: ``"pmap"`` or ``"jit"``.
        devices: how many of the visible devices; 0 for all. Several processes always use all.
        batch_size: examples per step over all devices.

    Raises:
        ConfigError: more devices than there are, or a batch that does not divide among them.
    """
    visible = jax.devices()
    if devices > len(visible):
        raise ConfigError(f"--devices must be at most {len(visible)}, the visible devices, got {devices}")
    if devices and jax.process_count() > 1 and devices != len(visible):
        raise ConfigError(f"--devices must be 0 or {len(visible)} with several processes, got {devices}")
    used = visible[: devices or len(visible)]
    if batch_size % len(used):
        raise ConfigError(f"--batch-size must divide among {len(used)} devices, got {batch_size}")
    mesh = Mesh(np.array(used), (AXIS,), axis_types=(AxisType.Auto,))
    replicated, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    on_host = used[0].platform == "cpu" and jax.process_count() == 1

    def put_state(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(replicated, np.array(leaf, copy=True)),
            tree,
        )

    def divide(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(divided, leaf), tree)

    if kind == "jit":

        def compile_sharded(step: Callable[..., Any]) -> Callable[..., Any]:
            return jax.jit(step, in_shardings=(replicated, divided), out_shardings=replicated, donate_argnums=0)

        feed = (lambda batch: batch) if on_host else divide
        return Engine(len(used), compile_sharded, put_state, divide, feed, lambda state: state, divide)

    local = [device for device in used if device.process_index == jax.process_index()]

    def compile_mapped(step: Callable[..., Any]) -> Callable[..., Any]:
        mapped: Callable[..., Any] = jax.pmap(
            partial(step, axis=AXIS), AXIS, in_axes=(None, 0), out_axes=None, devices=used, donate_argnums=0
        )
        return mapped

    def fold(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.reshape(len(local), -1, *leaf.shape[1:]), tree)

    def put_batch(tree: Any) -> Any:
        if jax.process_count() > 1:
            return fold(tree)
        return jax.device_put(fold(tree), divided)  # one leading row per device

    def globalize(leaf: Any) -> Any:
        # With several processes pmap returns arrays over this process's devices only.
        shards = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, replicated, shards)

    feed = fold if on_host else put_batch
    return Engine(len(used), compile_mapped, put_state, put_batch, feed, partial(jax.tree.map, globalize), divide)
