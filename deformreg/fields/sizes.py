"""Sizes of flows: total variation, norms, and the number of folds."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deformreg import _checks
from deformreg._arrays import lengths_along, pad_examples, safe_root, wide


def total_variation(
    flow: Float[Array, "n *space axes"], *, diagonal: bool = False, epsilon: float = 1e-8
) -> Float[Array, " n"]:
    """The sum of the lengths of the differences between neighbouring displacements: stAdv's smoothness penalty.

    ``sum over p and its neighbours q of sqrt(|flow[p] - flow[q]|^2 + epsilon)``. Every pair of neighbours counts twice,
    once from either side; outside the image the flow continues with its edge values.

    Args:
        flow: in pixels.
        diagonal: the paper leaves the neighbourhood open: False takes the four adjacent pixels, True the four diagonal
            ones, as the implementation by rakutentech does. Volumes have six and eight.
        epsilon: pixels squared; keeps the root differentiable where neighbours agree.

    Returns:
        One sum per example, in pixels.

    Raises:
        ValueError: the shape is not that of a flow, or `epsilon` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> step = jnp.zeros((1, 1, 2, 2)).at[0, 0, 1].set(jnp.array([3.0, 4.0]))
        >>> total_variation(step, epsilon=0.0).tolist()  # 5 pixels, seen from both sides
        [10.0]

    References:
        Xiao et al., "Spatially Transformed Adversarial Examples", ICLR 2018, equation 4.
    """
    flow = wide(_checks.flow(flow))
    _checks.non_negative("epsilon", epsilon)
    axes = flow.shape[-1]
    offsets: list[tuple[int, ...]] = (
        list(itertools.product((1,), *[(1, -1)] * (axes - 1)))
        if diagonal
        else [tuple(int(each == axis) for each in range(axes)) for axis in range(axes)]
    )
    padded = pad_examples(flow, [*[(1, 1)] * axes, (0, 0)], "edge")
    total = jnp.zeros(flow.shape[0], flow.dtype)
    for offset in [*offsets, *(tuple(-step for step in offset) for offset in offsets)]:
        window = [slice(1 + step, 1 + step + size) for step, size in zip(offset, flow.shape[1:-1], strict=True)]
        squared = jnp.sum((flow - padded[:, *window]) ** 2, axis=-1) + epsilon
        total = total + safe_root(squared).sum(axis=tuple(range(1, axes + 1)))
    return total


def max_component(flow: Float[Array, "n *space axes"]) -> Float[Array, " n"]:
    """The l-infinity norm: the largest component of each example, in pixels.

    Args:
        flow: in pixels.

    Returns:
        One number per example.

    Raises:
        ValueError: the shape is not that of a flow.

    Example:
        >>> import jax.numpy as jnp
        >>> max_component(jnp.zeros((1, 4, 4, 2)).at[0, 1, 2].set(jnp.array([3.0, -4.0]))).tolist()
        [4.0]
    """
    flow = _checks.flow(flow)
    return jnp.max(jnp.abs(flow), axis=tuple(range(1, flow.ndim)))


def _lengths(flow: Array) -> Array:
    return lengths_along(flow, (-1,))[..., 0]


def max_displacement(flow: Float[Array, "n *space axes"]) -> Float[Array, " n"]:
    """ADef's norm: the length of the longest displacement of each example, in pixels.

    Args:
        flow: in pixels.

    Returns:
        One number per example.

    Raises:
        ValueError: the shape is not that of a flow.

    Example:
        >>> import jax.numpy as jnp
        >>> max_displacement(jnp.zeros((1, 4, 4, 2)).at[0, 1, 2].set(jnp.array([3.0, -4.0]))).tolist()
        [5.0]
    """
    flow = _checks.flow(flow)
    return jnp.max(_lengths(flow), axis=tuple(range(1, flow.ndim - 1)))


def mean_displacement(flow: Float[Array, "n *space axes"]) -> Float[Array, " n"]:
    """The mean length of the displacements of each example, in pixels.

    Args:
        flow: in pixels.

    Returns:
        One number per example.

    Raises:
        ValueError: the shape is not that of a flow.

    Example:
        >>> import jax.numpy as jnp
        >>> mean_displacement(jnp.ones((1, 4, 4, 2)) * jnp.array([3.0, 4.0])).tolist()
        [5.0]
    """
    flow = _checks.flow(flow)
    return jnp.mean(_lengths(flow), axis=tuple(range(1, flow.ndim - 1)))


def folds(flow: Float[Array, "n *space axes"]) -> Int[Array, " n"]:
    """The number of places where a flow folds: cells between neighbouring pixels that it turns over or flattens.

    A cell folds if the map ``p + flow[p]``, interpolated linearly, has a Jacobian determinant of zero or less at one of
    its corners. In images and signals a cell without such a corner does not fold anywhere; in volumes it may still fold
    between its corners.

    Args:
        flow: in pixels.

    Returns:
        One count per example, at most the number of cells: (h - 1)(w - 1) for images.

    Raises:
        ValueError: the shape is not that of a flow.

    Example:
        >>> import jax.numpy as jnp
        >>> swapped = jnp.zeros((1, 4, 2, 2)).at[0, :, 0, 1].set(1.5)  # the left column reads beyond the right one
        >>> folds(swapped).tolist(), folds(jnp.zeros((1, 4, 2, 2))).tolist()
        ([3], [0])
    """
    flow = _checks.flow(flow)
    axes = range(flow.shape[-1])
    corners = list(itertools.product((0, 1), repeat=len(axes)))
    # The flow at every corner of every cell.
    at = {
        corner: flow[
            :, *(slice(offset, size - 1 + offset) for offset, size in zip(corner, flow.shape[1:-1], strict=True))
        ]
        for corner in corners
    }

    def jacobian(corner: tuple[int, ...]) -> list[list[Array]]:
        def along(axis: int) -> Array:
            low, high = (at[*corner[:axis], end, *corner[axis + 1 :]] for end in (0, 1))
            return high - low

        return [[along(axis)[..., other] + float(axis == other) for other in axes] for axis in axes]

    folded = [_determinant(jacobian(corner)) <= 0 for corner in corners]
    return jnp.any(jnp.stack(folded), axis=0).reshape(flow.shape[0], -1).sum(axis=1, dtype=jnp.int32)


def _determinant(rows: list[list[Array]]) -> Array:
    """The determinant of a small matrix of arrays, by its first row."""
    if len(rows) == 1:
        return rows[0][0]
    terms = []
    for column, entry in enumerate(rows[0]):
        minor = _determinant([[*row[:column], *row[column + 1 :]] for row in rows[1:]])
        terms.append(entry * minor if column % 2 == 0 else -entry * minor)
    return sum(terms[1:], terms[0])
