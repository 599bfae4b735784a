"""The backward warp, with a derivative rule that needs no scatter for the flow's gradient.

`warp` reads every output pixel from a displaced position of the input. The automatic derivative of that gather would
scatter in its reverse pass even where only the flow's gradient is needed, although that gradient is a product of
numbers at one pixel. The rule below avoids it: the tangent of the flow multiplies the slopes of the interpolated image,
and only the tangent of the images goes through the gather.

References:
    Jaderberg et al., "Spatial Transformer Networks", NeurIPS 2015, equations 5 to 7 (bilinear sampling and its
    subgradients).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import aligned
from deformreg._cells import Boundary as Boundary  # for users: `as` says that it is exported
from deformreg._cells import pad, read_cell
from deformreg._interpolation import CUBIC, LINEAR, Interpolation

Order = Literal[1, 3]
"""Of interpolation: linear, or cubic and smooth."""

_INTERPOLATIONS = {1: LINEAR, 3: CUBIC}


def warp(
    images: Float[Array, "n *space c"],
    flow: Float[Array, "n *space axes"],
    *,
    boundary: Boundary = "edge",
    within: float | None = None,
    order: Order = 1,
) -> Float[Array, "n *space c"]:
    """Moves the pixels of images along a flow: ``out[p] = images(p + flow[p])``, bilinear or cubic.

    Signals and volumes are warped in the same way, linearly and trilinearly.

    The zero flow returns the images exactly. Bilinear interpolation has kinks at the grid points; there the
    derivative with respect to the flow is always the *forward* difference, ``image[p + 1] - image[p]``: the
    derivative from above, whatever the sign of a later step. In the last row and column `boundary` defines the
    forward neighbour: the edge pixel itself for ``"edge"``, so that the derivative is zero; zero for ``"zeros"``; the
    previous pixel for ``"reflect"``.

    ``order=3`` is cubic convolution: smooth, without kinks; at a grid point the derivative is the central difference,
    half of ``image[p + 1] - image[p - 1]``. It reads four pixels per axis instead of two, and it overshoots: next to an
    edge, values leave the range of the images by up to 0.125 of it in signals, 0.282 in images, 0.477 in volumes, and
    `deformreg.evaluate` counts an image outside its `image_range` as no success.

    All first and second derivatives, in forward and reverse mode, are finite for finite images and any flow without
    NaN, also far outside the image. The reverse pass to the flow needs neither gather nor scatter.

    Args:
        images: images ``[n, h, w, c]``, signals ``[n, t, c]`` or volumes ``[n, d, h, w, c]``; any range; float16,
            bfloat16, float32 or float64. The 16-bit types are interpolated in float32.
        flow: displacements in pixels (samples of a signal, voxels of a volume), of any floating type. The last axis has
            one component per spatial axis, in the order of the axes: (dy, dx) for images.
        boundary: the values outside the image: the nearest edge pixel (``"edge"``), ``"zeros"``, or the image
            mirrored about the centres of its border pixels (``"reflect"``: ... 2 1 | 0 1 2).
        within: an upper bound on the size of every component of the flow, in pixels. Below two pixels the warp and the
            flow's gradient are faster, with the same values and derivatives; gradients of the images and second
            derivatives are not faster. A longer component may be shortened to the next whole pixel. None for no
            bound.
        order: 1 for linear, 3 for cubic interpolation.

    Returns:
        The warped images, of the shape and type of `images`.

    Raises:
        TypeError: `images` or `flow` is not floating point, or `within` is not a number.
        ValueError: the shapes do not fit, `boundary` or `order` is unknown, or `within` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> image = jnp.arange(4.0).reshape(1, 1, 4, 1)
        >>> half_a_pixel_right = jnp.zeros((1, 1, 4, 2)).at[..., 1].set(0.5)
        >>> warp(image, half_a_pixel_right).ravel().tolist()
        [0.5, 1.5, 2.5, 3.0]
        >>> signal, later = jnp.array([[[0.0], [1.0], [4.0]]]), jnp.full((1, 3, 1), 0.5)
        >>> warp(signal, later).ravel().tolist()
        [0.5, 2.5, 4.0]

    References:
        Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981 (``order=3``).
    """
    images = _checks.images(images)
    flow = _checks.flow_for(flow, images.shape)
    _checks.choice("boundary", boundary, get_args(Boundary))
    interpolation, reach = interpolation_of(order), reach_of(within)
    images = aligned(images, flow)
    flow = aligned(flow, images)
    if reach is None:
        return _warp(interpolation, boundary, None, images, flow)
    # One channel at a time: XLA does not vectorize a last axis of three on CPUs.
    planes = pad(boundary, jnp.moveaxis(images, -1, 1), reach - interpolation.taps[0], axes=range(2, images.ndim))
    each = (planes[:, channel, ..., None] for channel in range(planes.shape[1]))
    return jnp.concatenate([_warp(interpolation, boundary, reach, plane, flow) for plane in each], axis=-1)


def forward_differences(
    images: Float[Array, "n *space c"], *, boundary: Boundary = "edge"
) -> tuple[Float[Array, "n *space c"], ...]:
    """The derivatives of ``warp(images, flow, boundary=boundary)`` along each spatial axis at the zero flow.

    Args:
        images: images, signals or volumes, see `warp`; any range.
        boundary: see `warp`; it matters in the last row and column only.

    Returns:
        One array per axis; for images ``(images[p + 1 row] - images[p], images[p + 1 column] - images[p])``.

    Raises:
        TypeError: integer images.
        ValueError: images of another rank, or an unknown `boundary`.

    Example:
        >>> import jax.numpy as jnp
        >>> dy, dx = forward_differences(jnp.arange(4.0).reshape(1, 1, 4, 1))
        >>> dx.ravel().tolist()
        [1.0, 1.0, 1.0, 0.0]
    """
    images = _checks.images(images)
    _checks.choice("boundary", boundary, get_args(Boundary))
    return tuple(_difference(images, axis, boundary) for axis in range(1, images.ndim - 1))


def central_differences(
    images: Float[Array, "n *space c"], *, boundary: Boundary = "edge"
) -> tuple[Float[Array, "n *space c"], ...]:
    """The derivatives of ``warp(images, flow, boundary=boundary, order=3)`` along each spatial axis at the zero flow.

    Args:
        images: images, signals or volumes, see `warp`; any range.
        boundary: see `warp`; it matters in the first and last row and column only.

    Returns:
        One array per axis: half of ``images[p + 1] - images[p - 1]``.

    Raises:
        TypeError: integer images.
        ValueError: images of another rank, or an unknown `boundary`.

    Example:
        >>> import jax.numpy as jnp
        >>> dy, dx = central_differences(jnp.arange(4.0).reshape(1, 1, 4, 1))
        >>> dx.ravel().tolist()
        [0.5, 1.0, 1.0, 0.5]
    """
    images = _checks.images(images)
    _checks.choice("boundary", boundary, get_args(Boundary))

    def along(axis: int) -> Array:
        backward = jnp.flip(_difference(jnp.flip(images, axis), axis, boundary), axis)
        return 0.5 * (_difference(images, axis, boundary) - backward)

    return tuple(along(axis) for axis in range(1, images.ndim - 1))


def interpolation_of(order: Any) -> Interpolation:
    """Returns the interpolation of an order.

    Args:
        order: 1 for linear, 3 for cubic.

    Returns:
        The interpolation.

    Raises:
        ValueError: another order.
    """
    if order not in _INTERPOLATIONS:
        raise ValueError(f"order must be 1 (linear) or 3 (cubic), got {_checks.described(order)}")
    return _INTERPOLATIONS[order]


def reach_of(within: float | None) -> int | None:
    """The largest shift that components of up to `within` pixels need; None if a gather is faster."""
    if within is None:
        return None
    if isinstance(within, jax.Array) or not isinstance(within, (int, float, np.number)):
        raise TypeError(f"within must be a number known when the warp is traced, got {within!r}")
    _checks.non_negative("within", within)
    return int(within) + 1 if within < 2 else None


def _difference(images: Array, axis: int, boundary: Boundary) -> Array:
    last = jax.lax.slice_in_dim(images, -1, None, axis=axis)
    if boundary == "zeros":
        beyond = jnp.zeros_like(last)
    elif boundary == "reflect" and images.shape[axis] > 1:
        beyond = jax.lax.slice_in_dim(images, -2, -1, axis=axis)
    else:
        beyond = last
    return jnp.diff(images, axis=axis, append=beyond)


def _over_channels(values: Array, channels: int) -> Array:
    """Repeats [n, ..., 1] over the channels."""
    # The transpose of a broadcast reduces a short last axis, slow on CPUs; that of a concatenation sums slices.
    return jnp.concatenate([values] * channels, axis=-1) if channels <= 4 else values


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _warp(interpolation: Interpolation, boundary: Boundary, reach: int | None, images: Array, flow: Array) -> Array:
    return interpolation.values(*read_cell(interpolation, boundary, reach, images, flow)).astype(images.dtype)


@partial(_warp.defjvp, symbolic_zeros=True)
def _warp_jvp(
    interpolation: Interpolation,
    boundary: Boundary,
    reach: int | None,
    primals: tuple[Array, Array],
    tangents: tuple[Array | SymbolicZero, Array | SymbolicZero],
) -> tuple[Array, Array]:
    images, flow = primals
    images_dot, flow_dot = tangents
    moving = not isinstance(flow_dot, SymbolicZero)
    cell = read_cell(interpolation, boundary, reach, images, flow, reused=moving)
    outputs, parts = interpolation.values(*cell), []
    if not isinstance(images_dot, SymbolicZero):
        parts.append(interpolation.values(*read_cell(interpolation, boundary, reach, images_dot, flow)))
    if moving:
        slopes, flow_dot = interpolation.slopes(*cell), flow_dot.astype(outputs.dtype)
        steps = [_over_channels(flow_dot[..., axis : axis + 1], images.shape[-1]) for axis in range(len(slopes))]
        along = [slope * step for slope, step in zip(slopes, steps, strict=True)]
        parts.append(sum(along[1:], along[0]))
    tangent = sum(parts[1:], parts[0]) if parts else jnp.zeros_like(outputs)
    return outputs.astype(images.dtype), tangent.astype(images.dtype)
