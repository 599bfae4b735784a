"""Which displacement of a pixel does most: found exactly, for what is linear in the pixel's value.

Bilinear interpolation attains its extremes over a box at the corners of the cells that it cuts out of the grid. So only
displacements by whole pixels and by the radius are tried, 3 along each axis for a radius of at most one pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg._arrays import aligned
from deformreg.warping import Boundary, warp

T = TypeVar("T")

ROUNDING = 1e-6
"""Gains that differ by less than this share of their terms are equal: the displacement tried first wins."""


def over_displacements(
    images: Float[Array, "n *space c"],
    radius: float | Array,
    boundary: Boundary,
    visit: Callable[[T, Array, Array], T],
    start: T,
) -> T:
    """Folds `visit` over the extreme displacements: all pixels of the images displaced by the same offset.

    Args:
        images: any range.
        radius: in pixels, of every component; it may be traced.
        boundary: what lies outside the image.
        visit: ``(so far, displaced images, offset[rank]) -> so far``.
        start: what to begin with, arrays whose first axis is the example.
    """
    rank = images.ndim - 2
    reach = math.ceil(radius) if isinstance(radius, (int, float)) else jnp.ceil(radius).astype(jnp.int32)
    count = 2 * reach + 1

    def step(number: Array, so_far: T) -> T:
        digits = jnp.stack([number // count**axis % count for axis in range(rank)])
        pixels = (digits + 1) // 2 * jnp.where(digits % 2, -1, 1)  # 0, -1, 1, -2, ...: none comes first
        offset = jnp.clip(pixels, -radius, radius).astype(images.dtype)
        flow = jnp.broadcast_to(offset, (*images.shape[:-1], rank))
        return visit(so_far, warp(images, aligned(flow, images), boundary=boundary), offset)

    folded: T = jax.lax.fori_loop(0, count**rank, step, aligned(start, images))
    return folded


def best_displacements(
    images: Float[Array, "n *space c"],
    values: Float[Array, "n *space c"],
    gradients: Float[Array, "n *space c"],
    radius: float | Array,
    boundary: Boundary,
) -> tuple[Float[Array, " n *space"], Float[Array, "n *space rank"]]:
    """For every pixel the displacement that raises ``<gradient, value>``, summed over channels, most.

    Where nothing can be gained, it is no displacement.

    Args:
        images: the clean images.
        values: the present values of the pixels, to which gains compare.
        gradients: the loss's gradient with respect to `values`.
        radius: in pixels, of every component.
        boundary: what lies outside the image.

    Returns:
        ``(gains, displacements)``; a gain is negative where no extreme reaches the present value.
    """

    def visit(best: tuple[Array, Array], displaced: Array, offset: Array) -> tuple[Array, Array]:
        gains = jnp.sum(gradients * (displaced - values), axis=-1)
        rounding = jnp.sum(jnp.abs(gradients) * (jnp.abs(displaced) + jnp.abs(values)), axis=-1)
        better = gains > best[0] + ROUNDING * rounding
        return jnp.where(better, gains, best[0]), jnp.where(better[..., None], offset, best[1])

    nothing = jnp.full_like(images[..., 0], -jnp.inf)
    return over_displacements(
        images, radius, boundary, visit, (nothing, jnp.zeros((*nothing.shape, images.ndim - 2), images.dtype))
    )
