"""Criteria that ask for a share of an example's items, pixels or labels: how many, and how nearly they are right."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deformreg import _checks
from deformreg._arrays import entries

SLACK = 2e-7  # of the count, for rounding: 0.7 of ten pixels are seven, although the product is above 7 in binary
MOST_SLACK = 0.4  # items: half of an odd number rounds up


def share(name: str, value: Any) -> float:
    """Returns `value` as a number in (0, 1], or raises."""
    _checks.positive(name, value)
    if math.prod(jnp.shape(value)) != 1 or not float(value) <= 1:
        raise ValueError(f"{name} must be a share in (0, 1], got {value}")
    return float(value)


def needed(least: float, counted: Array | int) -> Array:
    """How many of `counted` must be right: at least one, if any counts."""
    if least == 1:
        return jnp.asarray(counted, jnp.int32)
    items = jnp.asarray(counted, jnp.float32)
    fewest = jnp.ceil(least * items - jnp.minimum(SLACK * items, MOST_SLACK))
    return jnp.maximum(fewest, items > 0).astype(jnp.int32)


def needed_margin(least: float, certainty: Array, counted: Array) -> Array:
    """Minus the certainty, [n, items], of the last item that is needed; -1 where nothing counts."""
    number = needed(least, jnp.sum(counted, axis=1))
    valid = counted & ~jnp.isnan(certainty)
    values = jnp.where(valid, certainty, -jnp.inf)
    # JAX cannot differentiate a sort of what is sharded over explicit mesh axes.
    order = jnp.argsort(jax.lax.stop_gradient(values), axis=1, descending=True)
    last = entries(values, entries(order, jnp.maximum(number - 1, 0)))
    return jnp.where(number > 0, -last, -1)
