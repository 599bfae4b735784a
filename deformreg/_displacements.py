"""Which displacement of a pixel does most: found exactly, for what is linear in the pixel's value.

Bilinear interpolation attains its extremes over a box at the corners of the cells that it cuts out of the grid. So only
displacements by whole pixels and by the radius are tried, 3 along each axis for a radius of at most one pixel. In the
disc of `deformreg.pixelwise_l2` they are shortened to the radius, which need not be exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import aligned
from deformreg.balls import Ball
from deformreg.warping import Boundary, warp

T = TypeVar("T")

BOXES = ("linf", "pixelwise_l2")

ROUNDING = 8
"""Gains that differ by less than this many units of rounding in their terms are equal: the displacement tried first
wins."""


def check_box(ball: Ball) -> Ball:
    """Returns the ball; raises unless it bounds every pixel's displacement by one number."""
    ball = _checks.instance("ball", ball, Ball, "deformreg.linf(0.5)")
    if ball.name not in BOXES:
        raise ValueError(f"ball must bound every pixel, linf or pixelwise_l2, got {ball.name}")
    _checks.radius("the ball's radius", ball.radius)
    return ball


def wide(values: Array) -> Array:
    """The values in the type in which warps interpolate, float32 or wider."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def over_displacements(
    images: Float[Array, "n *space c"],
    ball: Ball,
    boundary: Boundary,
    visit: Callable[[T, Array, Array], T],
    start: T,
) -> T:
    """Folds `visit` over the extreme displacements: all pixels of the images displaced by the same offset.

    Args:
        images: any range.
        ball: one that `check_box` returns; its radius may be traced.
        boundary: what lies outside the image.
        visit: ``(so far, displaced images, offset[rank]) -> so far``; of the arrays of flows, float32 or wider.
        start: what to begin with, arrays whose first axis is the example.

    Returns:
        What the last visit returns.
    """
    rank, radius = images.ndim - 2, ball.radius
    reach = math.ceil(radius) if isinstance(radius, (int, float)) else jnp.ceil(radius).astype(jnp.int32)
    count = 2 * reach + 1
    dtype = jnp.promote_types(images.dtype, jnp.float32)

    def step(number: Array, so_far: T) -> T:
        digits = jnp.stack([number // count**axis % count for axis in range(rank)])
        pixels = (digits + 1) // 2 * jnp.where(digits % 2, -1, 1)  # 0, -1, 1, -2, ...: none comes first
        offset = ball.project(jnp.clip(pixels, -radius, radius).astype(dtype)[None])[0]
        flow = jnp.broadcast_to(offset, (*images.shape[:-1], rank))
        return visit(so_far, warp(images, aligned(flow, images), boundary=boundary), offset)

    folded: T = jax.lax.fori_loop(0, count**rank, step, aligned(start, images))
    return folded


def best_displacements(
    images: Float[Array, "n *space c"],
    values: Float[Array, "n *space c"],
    gradients: Float[Array, "n *space c"],
    ball: Ball,
    boundary: Boundary,
) -> tuple[Float[Array, " n *space"], Float[Array, "n *space rank"]]:
    """For every pixel the displacement that raises ``<gradient, value>``, summed over channels, most.

    Where nothing can be gained, it is no displacement.

    Args:
        images: the clean images.
        values: the present values of the pixels, to which gains compare.
        gradients: the loss's gradient with respect to `values`, finite.
        ball: one that `check_box` returns.
        boundary: what lies outside the image.

    Returns:
        ``(gains, displacements)``, float32 or wider; a gain is negative where no extreme reaches the present value.
    """
    values, gradients = wide(values), wide(gradients)

    def visit(best: tuple[Array, Array], displaced: Array, offset: Array) -> tuple[Array, Array]:
        displaced = wide(displaced)
        gains = jnp.sum(gradients * (displaced - values), axis=-1)
        terms = jnp.sum(jnp.abs(gradients) * (jnp.abs(displaced) + jnp.abs(values)), axis=-1)
        better = gains > best[0] + ROUNDING * float(np.finfo(gains.dtype).eps) * terms
        return jnp.where(better, gains, best[0]), jnp.where(better[..., None], offset, best[1])

    nothing = jnp.full_like(values[..., 0], -jnp.inf)
    none = jnp.zeros((*nothing.shape, images.ndim - 2), nothing.dtype)
    return over_displacements(images, ball, boundary, visit, (nothing, none))
