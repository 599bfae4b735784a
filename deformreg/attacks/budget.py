"""Budgets: what an attack may do, as plain data and as a check of what it did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from deformreg.balls import Ball
from deformreg.perturbations import Perturbation

Params = Any


class Budget(NamedTuple):
    """What an attack may do.

    Attributes:
        radius: in `unit`; None for no bound.
        norm: what the radius bounds, for example ``"linf"``.
        unit: ``"pixels"`` for a bound on displacements, ``"image"`` for one on differences of pixel values, otherwise
            in words.
    """

    radius: float | tuple[float, ...] | None
    norm: str
    unit: str


def plain(value: Any) -> Any:
    """An array or number as plain data; None while it is traced, as a radius is that is an argument of `jit`."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value).tolist()


def budget_of(ball: Ball, perturbation: Perturbation) -> Budget:
    """A ball as plain data."""
    radius = plain(ball.radius)
    return Budget(tuple(radius) if isinstance(radius, list) else radius, ball.name, perturbation.unit)


def used_share(ball: Ball) -> Callable[[Params, Array], Array]:
    """How much of a ball's radius parameters use: 1 on the boundary."""

    def size(params: Params, images: Array) -> Array:
        del images
        norms = ball.norm(params)
        if jnp.ndim(ball.radius) > 0:  # such a ball's norm is a share already
            return norms
        return jnp.where(norms > 0, norms / jnp.asarray(ball.radius, norms.dtype), 0)

    return size
