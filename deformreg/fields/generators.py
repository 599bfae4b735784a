"""Flows made from parameters or from coarser flows: affine maps, upsampling, smoothing."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import pad_examples

AFFINE_PARAMETERS = ("rotation", "dy", "dx", "log_scale_y", "log_scale_x", "shear")


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
    flow = _checks.flow(flow)
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
    flow = _checks.flow(flow)
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
