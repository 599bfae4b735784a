"""Small operations on arrays and pytrees whose first axis is the example."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


def spread(values: Array, leaf: Array | jax.ShapeDtypeStruct) -> Array:
    """Gives per-example values trailing axes, so that they broadcast against a leaf."""
    return values.reshape(values.shape + (1,) * (leaf.ndim - values.ndim))


def aligned(tree: Tree, batch: Any) -> Tree:
    """Gives every leaf the batch's type along the first axis; the values stay the same.

    JAX's types say how values are spread over devices. Inside `jax.shard_map`, the leaves vary over the same mesh axes
    as the batch; with explicit mesh axes, they are sharded in the same way. Otherwise nothing changes.
    """
    kind = jax.typeof(batch)
    is_concrete = isinstance(batch, jax.Array) and not isinstance(batch, jax.core.Tracer)
    varying, over = kind.manual_axis_type.varying, kind.sharding.spec[0]

    def one(leaf: Array) -> Array:
        given = jax.typeof(leaf)
        # Without this cast, a gradient with respect to the leaf would be summed over the devices.
        if missing := varying - given.manual_axis_type.varying:
            leaf = jax.lax.pcast(leaf, tuple(missing), to="varying")
        if over is not None and given.sharding.spec[0] != over:
            # Outside `jit`, JAX also needs the devices, which types do not hold.
            mesh = (batch if is_concrete else kind).sharding.mesh
            leaf = jax.sharding.reshard(leaf, NamedSharding(mesh, PartitionSpec(over, *given.sharding.spec[1:])))
        return leaf

    result: Tree = jax.tree.map(one, tree)
    return result


def pad_examples(array: Array, widths: Sequence[tuple[int, int]], mode: str) -> Array:
    """Pads all axes but the first, as `jax.numpy.pad` does."""
    # `jax.numpy.pad` slices every axis, which JAX refuses for one that is sharded over explicit mesh axes.
    return jax.vmap(lambda example: jnp.pad(example, widths, mode=mode))(array)


def num_shards(batch: Array) -> int:
    """The number of parts in which explicit mesh axes divide a batch."""
    sharding = jax.typeof(batch).sharding
    over = sharding.spec[0]
    return math.prod(sharding.mesh.shape[axis] for axis in (over if isinstance(over, tuple) else (over,)) if axis)


def entries(tables: Array, indices: Array) -> Array:
    """Looks up one entry for each example, in a row of its own."""
    found: Array = jax.vmap(lambda table, index: table[index])(tables, indices)
    return found


def entries_of(table: Array, indices: Array) -> Array:
    """``table[indices]``: for each example the entry at its index."""
    # A row for each example: JAX refuses to index by what is sharded over explicit mesh axes.
    return entries(aligned(jnp.broadcast_to(table, (*indices.shape, *table.shape)), indices), indices)


def scaled(tree: Tree, factors: Array) -> Tree:
    """Multiplies every example of a pytree by its own factor, in the type of each leaf."""
    result: Tree = jax.tree.map(lambda leaf: leaf * spread(factors, leaf).astype(leaf.dtype), tree)
    return result


def choose(condition: Array, chosen: Any, otherwise: Any) -> Any:
    """Takes each example from `chosen` where its condition is true, else from `otherwise`."""
    return jax.tree.map(lambda a, b: jnp.where(spread(condition, a), a, b), chosen, otherwise)


def safe_root(squared: Array) -> Array:
    """The square root, with slope zero at zero, where the true slope is infinite."""
    # Both branches of `where` are differentiated, so the root itself must never see the zero.
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def absolute(values: Array) -> Array:
    """The absolute values, with slope zero at zero, where that of `jnp.abs` is 1."""
    return values * jnp.sign(values)


def finite_or_zero(gradient: Tree) -> Tree:
    """The gradient, zero where it is not finite: one step along such a component would end a search."""
    result: Tree = jax.tree.map(lambda leaf: jnp.nan_to_num(leaf, posinf=0.0, neginf=0.0), gradient)
    return result


def wide(values: Array) -> Array:
    """The values in float32 or wider: in 16 bits, products of small numbers vanish and squares overflow."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def divided(values: Array, sizes: Array) -> Array:
    """The values over their sizes, zero where the size is zero."""
    return jnp.where(sizes > 0, values / jnp.where(sizes > 0, sizes, 1), 0).astype(values.dtype)


def lengths_along(vectors: Array, axes: tuple[int, ...]) -> Array:
    """Euclidean lengths along axes, which are kept; float32 or wider.

    The vectors are divided by their largest component first: squares of small gradients would underflow.
    """
    vectors = wide(vectors)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=axes, keepdims=True, initial=0))
    shares = divided(vectors, jnp.where(jnp.isfinite(largest), largest, 1))
    return jnp.where(jnp.isinf(largest), largest, largest * safe_root(jnp.sum(shares**2, axis=axes, keepdims=True)))


def inner(first: Any, second: Any) -> Array:
    """The inner product of each example of two pytrees of the same shapes, float32 or wider."""

    def products(a: Array, b: Array) -> Array:
        wide = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
        return jnp.sum(a.astype(wide) * b.astype(wide), axis=tuple(range(1, a.ndim)))

    sums: list[Array] = jax.tree.leaves(jax.tree.map(products, first, second))
    return sum(sums[1:], sums[0])


def draw_leaves(draw: Callable[[Array, Array], Array], key: Array, tree: Any) -> Any:
    """Calls ``draw(key, leaf)`` with a key of its own for every leaf of a pytree."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [draw(each, leaf) for each, leaf in zip(keys, leaves, strict=True)])
