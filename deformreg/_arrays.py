"""Small operations on arrays and pytrees whose first axis is the example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

Tree = TypeVar("Tree")


def spread(values: Array, leaf: Array | jax.ShapeDtypeStruct) -> Array:
    """Gives per-example values trailing axes, so that they broadcast against a leaf."""
    return values.reshape(values.shape + (1,) * (leaf.ndim - values.ndim))


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
