"""Units of flows: pixels, and the normalized units of PyTorch."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks


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
    flow = _checks.flow(flow)
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
    flow = _checks.flow(flow)
    sizes = flow.shape[1:-1]
    if min(sizes) < 2:
        raise ValueError(f"flow must be at least 2 pixels long along every axis, got {flow.shape}")
    return flow[..., ::-1] * _along_axes([2 / (size - 1) for size in reversed(sizes)], flow)
