"""Which displacement of a pixel does most: found exactly, for what is linear in the pixel's value.

Bilinear interpolation attains its extremes over a box at the corners of the cells that it cuts out of the grid. So only
displacements by whole pixels and by the radius are tried, 3 along each axis for a radius of at most one pixel. Those
longer than the image are left out: they read nothing else. In the disc of `deformreg.pixelwise_l2` they are shortened
to the radius, which need not be exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from deformreg import _checks
from deformreg._arrays import aligned, wide
from deformreg._cells import pad
from deformreg._interpolation import LINEAR
from deformreg.balls import Ball
from deformreg.warping import Boundary, warp

T = TypeVar("T")

BOXES = ("linf", "pixelwise_l2")

ROUNDING = 8
"""Gains that differ by less than this many units of rounding in their terms are equal: the displacement tried first
wins."""

LONGEST_SLICED = 8
"""Pixels: displacements up to this are slices of padded images, which CPUs read faster than a gather, longer ones are
warps."""

FEW_CHANNELS = 4
"""Images of at most so many channels are taken apart into planes."""


def check_box(ball: Ball) -> Ball:
    """Returns the ball; raises unless it bounds every pixel's displacement by one number."""
    ball = _checks.instance("ball", ball, Ball, "deformreg.linf(0.5)")
    if ball.name not in BOXES:
        raise ValueError(f"ball must bound every pixel, linf or pixelwise_l2, got {ball.name}")
    _checks.radius("the ball's radius", ball.radius)
    return ball


def planes(images: Float[Array, "n *space c"]) -> list[Array]:
    """The channels one by one, [n, *space, 1] each, if they are few; else the images as they are, alone in a list."""
    # XLA does not vectorize a last axis of three on CPUs.
    few = images.shape[-1] <= FEW_CHANNELS
    return [images[..., channel, None] for channel in range(images.shape[-1])] if few else [images]


def over_displacements(
    images: Float[Array, "n *space c"],
    ball: Ball,
    boundary: Boundary,
    visit: Callable[[T, list[Array], Array], T],
    start: T,
) -> T:
    """Folds `visit` over the extreme displacements: all pixels of the images displaced by the same offset.

    Args:
        images: any range.
        ball: one that `check_box` returns; its radius may be traced.
        boundary: what lies outside the image.
        visit: ``(so far, planes of the displaced images, number of the displacement) -> so far``, see `offset_of`.
        start: what to begin with, arrays whose first axis is the example.

    Returns:
        What the last visit returns.
    """
    sizes, dtype = images.shape[1:-1], jnp.promote_types(images.dtype, jnp.float32)
    rank, count = len(sizes), math.prod(_per_axis(ball, size) for size in sizes)

    def fold(displaced: Callable[[Array], list[Array]]) -> T:
        def step(number: Array, so_far: T) -> T:
            (offset,) = offset_of(number[None], ball, sizes, dtype)
            return visit(so_far, displaced(offset), number.astype(jnp.int32))

        folded: T = jax.lax.fori_loop(0, count, step, aligned(start, images))
        return folded

    def by_warps() -> T:
        return fold(lambda offset: planes(_warped(images, offset, boundary)))

    def by_slices() -> T:
        padded = pad(boundary, images, LONGEST_SLICED + 1, axes=range(1, rank + 1))
        wholes = planes(padded.astype(dtype))
        return fold(lambda offset: [_sliced(each, images.shape[1:-1], offset).astype(images.dtype) for each in wholes])

    if max(sizes) <= LONGEST_SLICED:
        return by_slices()
    if isinstance(ball.radius, (int, float)):
        return by_slices() if ball.radius <= LONGEST_SLICED else by_warps()
    found: T = jax.lax.cond(ball.radius <= LONGEST_SLICED, by_slices, by_warps)
    return found


def offset_of(
    number: Int[Array, " n *space"], ball: Ball, sizes: Sequence[int], dtype: DTypeLike
) -> Float[Array, "n *space rank"]:
    """The extreme displacements with these numbers, in images of these sizes; number 0 is none."""
    digits = []
    for size in sizes:
        count = _per_axis(ball, size)
        digits.append(number % count)
        number = number // count
    digit = jnp.stack(digits, axis=-1)
    pixels = (digit + 1) // 2 * jnp.where(digit % 2, -1, 1)  # 0, -1, 1, -2, ...
    limit = jnp.asarray(ball.radius, dtype)
    offsets: Array = ball.project(jnp.clip(pixels.astype(dtype), -limit, limit))
    return offsets


def _per_axis(ball: Ball, size: int) -> int | Array:
    """How many extremes there are along an axis of this size."""
    radius = ball.radius
    if isinstance(radius, (int, float)):
        return 2 * math.ceil(min(radius, size)) + 1
    return 2 * jnp.ceil(jnp.minimum(radius, size)).astype(jnp.int32) + 1


def _warped(images: Array, offset: Array, boundary: Boundary) -> Array:
    flow = jnp.broadcast_to(offset, (*images.shape[:-1], len(offset)))
    return warp(images, aligned(flow, images), boundary=boundary)


def _sliced(padded: Array, sizes: Sequence[int], offset: Array) -> Array:
    """The same values as `_warped`, from images that are padded by `LONGEST_SLICED` and one."""
    whole = jnp.floor(offset)
    first = LONGEST_SLICED + 1 + whole.astype(jnp.int32)

    def corner(at: tuple[int, ...]) -> Array:
        starts = jnp.pad(first + jnp.array(at, jnp.int32), 1)  # all examples and channels
        return jax.lax.dynamic_slice(padded, list(starts), (padded.shape[0], *sizes, padded.shape[-1]))

    return LINEAR.values([corner(at) for at in LINEAR.offsets(len(sizes))], list(offset - whole))


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
    now, slopes = planes(wide(values)), planes(wide(gradients))
    nothing = jnp.full(values.shape[:-1], -jnp.inf, now[0].dtype)
    rounding = ROUNDING * float(np.finfo(nothing.dtype).eps)

    def visit(best: tuple[Array, Array], displaced: list[Array], number: Array) -> tuple[Array, Array]:
        each = list(zip(slopes, map(wide, displaced), now, strict=True))
        gains = sum_channels([slope * (there - here) for slope, there, here in each])
        terms = sum_channels([jnp.abs(slope) * (jnp.abs(there) + jnp.abs(here)) for slope, there, here in each])
        better = gains > best[0] + rounding * terms
        return jnp.where(better, gains, best[0]), jnp.where(better, number, best[1])

    gains, numbers = over_displacements(images, ball, boundary, visit, (nothing, jnp.zeros(nothing.shape, jnp.int32)))
    return gains, offset_of(numbers, ball, images.shape[1:-1], gains.dtype)


def sum_channels(values: Sequence[Array]) -> Array:
    """The sum over the channels of planes, [n, *space]."""
    parts = [jnp.sum(each, axis=-1) for each in values]
    return sum(parts[1:], parts[0])
