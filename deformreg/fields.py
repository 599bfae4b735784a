"""Flow fields: units, generators, smoothing and norms.

A flow is ``float[n, h, w, 2]``: a displacement in pixels for every pixel, last axis (dy, dx) like NumPy indices. It
says where an output pixel *reads from*, so the image content moves in the opposite direction. Flows of signals,
``[n, t, 1]``, and of volumes, ``[n, d, h, w, 3]``, are in the same order: one component per axis.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deformreg import _checks
from deformreg._arrays import pad_examples, safe_root

AFFINE_PARAMETERS = ("rotation", "dy", "dx", "log_scale_y", "log_scale_x", "shear")


def _flow(flow: Any, name: str = "flow") -> Array:
    array = _checks.floating(name, flow)
    if not 3 <= array.ndim <= 5 or array.shape[-1] != array.ndim - 2:
        raise ValueError(
            f"{name} must have shape [n, h, w, 2] (signals [n, t, 1], volumes [n, d, h, w, 3]), got {array.shape}"
        )
    return array


def pixels_from_normalized(flow: Float[Array, "n *space axes"]) -> Float[Array, "n *space axes"]:
    """Converts a flow from PyTorch's normalized (x, y) units to pixels (dy, dx).

    These are the units of `grid_sample` with ``align_corners=True``: an image spans [-1, 1], and one pixel is
    ``2 / (size - 1)``.

    Args:
        flow: in normalized units, last axis (x, y), or (x, y, z) for volumes.

    Returns:
        The same flow in pixels, last axis (dy, dx) or (dz, dy, dx).

    Raises:
        ValueError: the shape is not that of a flow.

    Example:
        >>> import jax.numpy as jnp
        >>> to_the_right = jnp.zeros((1, 5, 9, 2)).at[..., 0].set(0.5)
        >>> pixels_from_normalized(to_the_right)[0, 0, 0].tolist()
        [0.0, 2.0]
    """
    flow = _flow(flow)
    return flow[..., ::-1] * _along_axes(pixels_per_unit(flow.shape[1:-1]), flow)


def pixels_per_unit(sizes: tuple[int, ...]) -> list[float]:
    """The length in pixels of a normalized unit, along each axis of these sizes.

    Args:
        sizes: the sizes of the spatial axes, in pixels.

    Returns:
        One length per axis, in the order of the axes.

    Example:
        >>> pixels_per_unit((5, 9))
        [2.0, 4.0]
    """
    return [(size - 1) / 2 for size in sizes]


def _along_axes(values: list[float], flow: Array) -> Array:
    """One value per component, to be multiplied with a flow."""
    return jnp.array(values, flow.dtype).reshape((1,) * (flow.ndim - 1) + (len(values),))


def normalized_from_pixels(flow: Float[Array, "n *space axes"]) -> Float[Array, "n *space axes"]:
    """Converts a flow from pixels (dy, dx) to PyTorch's normalized (x, y) units.

    Args:
        flow: in pixels, last axis (dy, dx) or (dz, dy, dx); every side is at least two pixels long.

    Returns:
        The same flow in normalized units, last axis (x, y) or (x, y, z).

    Raises:
        ValueError: the shape is not that of a flow, or a side is one pixel long and so has no normalized unit.

    Example:
        >>> import jax.numpy as jnp
        >>> normalized_from_pixels(jnp.ones((1, 5, 9, 2)))[0, 0, 0].tolist()
        [0.25, 0.5]
    """
    flow = _flow(flow)
    sizes = flow.shape[1:-1]
    if min(sizes) < 2:
        raise ValueError(f"flow must be at least 2 pixels long along every axis, got {flow.shape}")
    return flow[..., ::-1] * _along_axes([2 / (size - 1) for size in reversed(sizes)], flow)


def affine_flow(params: Float[Array, "n 6"], height: int, width: int) -> Float[Array, "n *space axes"]:
    """The flow of affine maps about the image's centre.

    A pixel at offset ``p`` from the centre reads from ``R(rotation) S H p + (dy, dx)``, with the shear
    ``H = [[1, 0], [shear, 1]]`` in (y, x) order, the scaling ``S = diag(exp(log_scale_y), exp(log_scale_x))``, and
    ``R`` the rotation that takes the direction of x (right) towards the direction of y (down). Zeros are the
    identity. The image content moves in the opposite direction: a positive rotation turns it counterclockwise on a
    screen.

    Args:
        params: one row per example with the columns `AFFINE_PARAMETERS`: rotation in radians, dy and dx in pixels,
            natural logarithms of the two scales, shear in pixels of x per pixel of y.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        The flow in pixels.

    Raises:
        ValueError: `params` is not [n, 6], or a size is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> quarter_turn = jnp.zeros((1, 6)).at[0, 0].set(jnp.pi / 2)
        >>> flow = affine_flow(quarter_turn, 3, 3)  # the upper left corner reads the upper right one
        >>> jnp.abs(jnp.round(flow[0, 0, 0], 3)).tolist()
        [0.0, 2.0]
    """
    params = _checks.floating("params", params, rank=2, axes="[n, 6]")
    if params.shape[1] != len(AFFINE_PARAMETERS):
        raise ValueError(f"params must have shape [n, 6], columns {AFFINE_PARAMETERS}, got {params.shape}")
    height, width = _checks.count("height", height), _checks.count("width", width)
    angle, dy, dx, log_y, log_x, shear = (params[:, i, None, None] for i in range(6))
    y = (jnp.arange(height, dtype=params.dtype) - (height - 1) / 2)[None, :, None]
    x = (jnp.arange(width, dtype=params.dtype) - (width - 1) / 2)[None, None, :]
    # Every term vanishes with the parameters, so that zero parameters give exactly the zero flow.
    stretched_y = jnp.expm1(log_y) * y
    stretched_x = jnp.expm1(log_x) * (x + shear * y) + shear * y
    turn, lean = jnp.sin(angle), -2 * jnp.sin(angle / 2) ** 2  # sin, cos - 1
    moved_y = stretched_y + lean * (y + stretched_y) + turn * (x + stretched_x) + dy
    moved_x = stretched_x + lean * (x + stretched_x) - turn * (y + stretched_y) + dx
    return jnp.stack([moved_y, moved_x], axis=-1)


def upsample(flow: Float[Array, "n *coarse axes"], *sizes: int) -> Float[Array, "n *space axes"]:
    """Interpolates a coarse flow linearly to full resolution; displacements keep their length in pixels.

    Args:
        flow: the coarse field, in pixels of the full resolution.
        sizes: the sizes of the result's spatial axes in pixels; for images height and width.

    Returns:
        The full field; its values stay within the range of the coarse ones.

    Raises:
        ValueError: the shape is not that of a flow, or the sizes are not one positive number per axis.

    Example:
        >>> import jax.numpy as jnp
        >>> upsample(jnp.ones((1, 2, 2, 2)), 8, 6).shape
        (1, 8, 6, 2)
    """
    flow = _flow(flow)
    if len(sizes) != flow.shape[-1]:
        raise ValueError(f"sizes must be one per axis of a flow of shape {flow.shape}, got {sizes}")
    shape = (flow.shape[0], *(_checks.count("sizes", size) for size in sizes), flow.shape[-1])
    full: Array = jax.image.resize(flow, shape, "linear", antialias=False)
    return full


def smooth(flow: Float[Array, "n *space axes"], sigma: float) -> Float[Array, "n *space axes"]:
    """Gaussian smoothing of a flow, with edge padding and a kernel cut at four standard deviations.

    The kernel is normalized: a constant flow does not change, and no component exceeds the flow's maximum.

    Args:
        flow: in pixels.
        sigma: standard deviation in pixels, a Python number; 0 returns the flow unchanged.

    Returns:
        The smoothed flow.

    Raises:
        ValueError: the shape is not that of a flow, or `sigma` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> spike = jnp.zeros((1, 9, 9, 2)).at[0, 4, 4].set(1.0)
        >>> round(float(smooth(spike, 1.0).sum()), 5)
        2.0
    """
    flow = _flow(flow)
    _checks.non_negative("sigma", sigma)
    if sigma == 0:
        return flow
    reach = max(1, math.ceil(4 * sigma))
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1)]
    total = sum(weights)
    for axis in range(1, flow.ndim - 1):
        padding = [(reach, reach) if i == axis else (0, 0) for i in range(1, flow.ndim)]
        # The barrier: XLA would compute the field anew for each of its shifts, and compile all of that code.
        padded = jax.lax.optimization_barrier(pad_examples(flow, padding, "edge"))
        size = flow.shape[axis]
        flow = sum(
            (weight / total) * jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i, weight in enumerate(weights)
        )  # type: ignore[assignment]
    return flow


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
    flow = _flow(flow)
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
    flow = _flow(flow)
    return jnp.max(jnp.abs(flow), axis=tuple(range(1, flow.ndim)))


def _lengths(flow: Array) -> Array:
    return safe_root(jnp.sum(flow**2, axis=-1))


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
    flow = _flow(flow)
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
    flow = _flow(flow)
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
    flow = _flow(flow)
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
