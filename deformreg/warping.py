"""The bilinear backward warp, with a derivative rule that needs no scatter for the flow's gradient.

`warp` reads every output pixel from a displaced position of the input. The automatic derivative of that gather would
scatter in its reverse pass even where only the flow's gradient is needed, although that gradient is a product of
numbers at one pixel. The rule below avoids it: the tangent of the flow multiplies the slopes of the interpolated image,
and only the tangent of the images goes through the gather.

For small displacements, a choice among a few shifted copies of the image replaces the gather: CPUs vectorize it, and
TPUs have no fast gather.

References:
    Jaderberg et al., "Spatial Transformer Networks", NeurIPS 2015, equations 5 to 7 (bilinear sampling and its
    subgradients).
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import aligned, padded

Boundary = Literal["zeros", "edge", "reflect"]

_PADDING = {"zeros": "constant", "edge": "edge", "reflect": "reflect"}


def warp(
    images: Float[Array, "n h w c"],
    flow: Float[Array, "n h w 2"],
    *,
    boundary: Boundary = "edge",
    within: float | None = None,
) -> Float[Array, "n h w c"]:
    """Moves the pixels of images along a flow: ``out[p] = images(p + flow[p])``, bilinear.

    The zero flow returns the images exactly. Bilinear interpolation has kinks at the grid points; there the
    derivative with respect to the flow is always the *forward* difference, ``image[p + 1] - image[p]``: the
    derivative from above, whatever the sign of a later step. In the last row and column `boundary` defines the
    forward neighbour: the edge pixel itself for ``"edge"``, so that the derivative is zero; zero for ``"zeros"``; the
    previous pixel for ``"reflect"``.

    All first and second derivatives, in forward and reverse mode, are finite for finite images and any flow without
    NaN, also far outside the image. The reverse pass to the flow needs neither gather nor scatter.

    Args:
        images: any range; float16, bfloat16, float32 or float64. The 16-bit types are interpolated in float32.
        flow: displacements in pixels, last axis (dy, dx), of any floating type.
        boundary: the values outside the image: the nearest edge pixel (``"edge"``), ``"zeros"``, or the image
            mirrored about the centres of its border pixels (``"reflect"``: ... 2 1 | 0 1 2).
        within: an upper bound on the size of every component of the flow, in pixels. Below two pixels the warp and the
            flow's gradient are faster, with the same values and derivatives; gradients of the images and second
            derivatives are not faster. A longer component may be shortened to the next whole pixel. None for no
            bound.

    Returns:
        The warped images, of the shape and type of `images`.

    Raises:
        TypeError: `images` or `flow` is not floating point, or `within` is not a number.
        ValueError: the shapes do not fit, `boundary` is unknown, or `within` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> image = jnp.arange(4.0).reshape(1, 1, 4, 1)
        >>> half_a_pixel_right = jnp.zeros((1, 1, 4, 2)).at[..., 1].set(0.5)
        >>> warp(image, half_a_pixel_right).ravel().tolist()
        [0.5, 1.5, 2.5, 3.0]
    """
    images = _checks.images(images)
    flow = _checks.flow_for(flow, images.shape)
    _checks.choice("boundary", boundary, get_args(Boundary))
    images = aligned(images, flow)
    flow = aligned(flow, images)
    reach = _reach(within)
    if reach is None:
        return _warp(boundary, None, images, flow)
    # One channel at a time: XLA does not vectorize a last axis of three on CPUs.
    planes = jnp.moveaxis(_pad(boundary, images, reach), -1, 0)
    return jnp.moveaxis(jnp.stack([_warp(boundary, reach, plane[..., None], flow)[..., 0] for plane in planes]), 0, -1)


def forward_differences(
    images: Float[Array, "n h w c"], *, boundary: Boundary = "edge"
) -> tuple[Float[Array, "n h w c"], Float[Array, "n h w c"]]:
    """The derivatives of ``warp(images, flow, boundary=boundary)`` with respect to dy and dx at the zero flow.

    Args:
        images: any range.
        boundary: see `warp`; it matters in the last row and column only.

    Returns:
        ``(images[p + 1 row] - images[p], images[p + 1 column] - images[p])``.

    Example:
        >>> import jax.numpy as jnp
        >>> dy, dx = forward_differences(jnp.arange(4.0).reshape(1, 1, 4, 1))
        >>> dx.ravel().tolist()
        [1.0, 1.0, 1.0, 0.0]
    """
    images = _checks.images(images)
    _checks.choice("boundary", boundary, get_args(Boundary))
    return _difference(images, 1, boundary), _difference(images, 2, boundary)


def _reach(within: float | None) -> int | None:
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


def _cell(
    boundary: Boundary, reach: int | None, images: Array, flow: Array, *, reused: bool = False
) -> tuple[Array, ...]:
    """The four pixels around every sampling position, and the position inside their cell, in [0, 1).

    `reused`: whether more than one result is computed from them.
    """
    # Splitting the displacement instead of the position keeps the weights exact for images of any size. The limit
    # keeps the index arithmetic inside int32; a displacement beyond it leads outside of any image.
    limit = 2.0**20 if reach is None else float(reach)
    dtype = jnp.promote_types(flow.dtype, jnp.float32)
    flow = jnp.clip(flow.astype(dtype), -limit, limit)
    whole = jnp.floor(flow)
    if reach is not None:
        whole = jnp.minimum(whole, reach - 1)
    weights = (flow - whole).astype(jnp.promote_types(images.dtype, dtype))
    images = images.astype(weights.dtype)
    down, right = whole[..., 0], whole[..., 1]
    if reach is not None:
        corners = _chosen(reach, images, down, right)
    elif reused and _packable(boundary, images):
        corners = _packed(boundary, images, down, right)
    else:
        corners = _gathered(boundary, images, down, right)
    return (*corners, weights[..., :1], weights[..., 1:])


def _gathered(boundary: Boundary, images: Array, down: Array, right: Array) -> list[Array]:
    """The pixels at ``p + (down, right)`` and their neighbours below and to the right, each [n, h, w, c]."""
    rows, columns = _positions(down, right)
    return [_read(boundary, images, rows + i, columns + j) for i in (0, 1) for j in (0, 1)]


def _positions(down: Array, right: Array) -> tuple[Array, Array]:
    """The rows and columns ``p + (down, right)``, int32[n, h, w] each, which may lie outside the image."""
    height, width = down.shape[1:]
    rows = jnp.arange(height)[None, :, None] + down.astype(jnp.int32)
    columns = jnp.arange(width)[None, None, :] + right.astype(jnp.int32)
    return rows, columns


def _read(boundary: Boundary, images: Array, rows: Array, columns: Array) -> Array:
    """The pixels at integer positions [n, h, w], which may lie outside the image."""
    height, width = images.shape[1:3]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    if boundary == "reflect":
        rows, columns = _mirror(rows, height), _mirror(columns, width)
    pixels = _take(images, jnp.clip(rows, 0, height - 1) * width + jnp.clip(columns, 0, width - 1))
    return jnp.where(inside[..., None], pixels, 0) if boundary == "zeros" else pixels


def _take(images: Array, indices: Array) -> Array:
    """The pixels with the numbers int[n, h, w], counted row by row inside of each image; all must exist."""
    count, height, width, channels = images.shape

    def take(pixels: Array, index: Array) -> Array:
        return pixels.at[index].get(mode="promise_in_bounds")

    # One index into a list of pixels: for one channel, CPUs read a third faster than by row and column.
    return jax.vmap(take)(images.reshape(count, height * width, channels), indices)


def _packable(boundary: Boundary, images: Array) -> bool:
    """Whether `_packed` equals `_gathered` (mirrored cells are reversed, so not for "reflect") and is faster.

    Decided when the program is traced; the choice affects speed only, so compiling for another platform is safe.
    """
    # Measured on CPUs: up to 4 channels the flow gradient takes 0.4 to 0.9 of the time, from 8 channels on twice.
    return boundary != "reflect" and images.shape[-1] <= 4 and jax.default_backend() == "cpu"


def _packed(boundary: Boundary, images: Array, down: Array, right: Array) -> list[Array]:
    """The same as `_gathered`, by one gather from four copies of the images: each pixel beside its three neighbours.

    XLA for CPUs fuses four gathers into a single result. With two results (outputs and slopes) it computes each in a
    pass of its own, with its own index arithmetic; one gather of whole cells is then faster for few channels.
    """
    channels = images.shape[-1]
    margin = 2 if boundary == "zeros" else 1  # the outermost cells then equal every cell further out
    wider = _pad(boundary, images, margin)
    height, width = wider.shape[1] - 1, wider.shape[2] - 1
    cells = jnp.concatenate([wider[:, i : i + height, j : j + width] for i in (0, 1) for j in (0, 1)], axis=-1)
    rows, columns = _positions(down, right)
    rows, columns = jnp.clip(rows + margin, 0, height - 1), jnp.clip(columns + margin, 0, width - 1)
    pixels = _take(cells, rows * width + columns)
    return [pixels[..., corner * channels : (corner + 1) * channels] for corner in range(4)]


def _mirror(index: Array, size: int) -> Array:
    period = max(2 * (size - 1), 1)
    index = index % period
    return jnp.minimum(index, period - index)


def _chosen(reach: int, images: Array, down: Array, right: Array) -> list[Array]:
    """The same as `_gathered`, from shifted copies of images padded by `reach`; shifts in [-reach, reach - 1]."""
    height, width = down.shape[1:]

    def shifted(i: int, j: int) -> Array:
        return images[:, reach + i : reach + i + height, reach + j : reach + j + width]

    def choose(options: list[Array], whole: Array) -> Array:
        chosen = options[-1]
        for number, option in zip(range(-reach, reach - 1), options, strict=False):
            chosen = jnp.where((whole == number)[..., None], option, chosen)
        return chosen

    def row(i: int) -> list[Array]:
        return [
            choose([shifted(number + i, j) for number in range(-reach, reach)], down) for j in range(-reach, reach + 1)
        ]

    return [choose(options[j : 2 * reach + j], right) for options in (row(0), row(1)) for j in (0, 1)]


def _pad(boundary: Boundary, images: Array, width: int) -> Array:
    """Pads the rows and columns by `width` on both sides."""
    for axis in (1, 2):
        widths = [(width, width) if index == axis else (0, 0) for index in (1, 2, 3)]
        mode = "edge" if boundary == "reflect" and images.shape[axis] == 1 else _PADDING[boundary]
        images = padded(images, widths, mode)
    return images


def _interpolate(cell: tuple[Array, ...]) -> Array:
    upper_left, upper_right, lower_left, lower_right, down, right = cell
    upper = upper_left + right * (upper_right - upper_left)
    lower = lower_left + right * (lower_right - lower_left)
    return upper + down * (lower - upper)


def _slopes(cell: tuple[Array, ...]) -> tuple[Array, Array]:
    """The derivatives of `_interpolate` with respect to the position inside the cell."""
    upper_left, upper_right, lower_left, lower_right, down, right = cell
    left, rightward = lower_left - upper_left, upper_right - upper_left
    twist = lower_right - lower_left - rightward
    return left + right * twist, rightward + down * twist


def _over_channels(values: Array, channels: int) -> Array:
    """Repeats [n, h, w, 1] over the channels."""
    # The transpose of a broadcast reduces a short last axis, slow on CPUs; that of a concatenation sums slices.
    return jnp.concatenate([values] * channels, axis=-1) if channels <= 4 else values


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _warp(boundary: Boundary, reach: int | None, images: Array, flow: Array) -> Array:
    return _interpolate(_cell(boundary, reach, images, flow)).astype(images.dtype)


@partial(_warp.defjvp, symbolic_zeros=True)
def _warp_jvp(
    boundary: Boundary,
    reach: int | None,
    primals: tuple[Array, Array],
    tangents: tuple[Array | SymbolicZero, Array | SymbolicZero],
) -> tuple[Array, Array]:
    images, flow = primals
    images_dot, flow_dot = tangents
    moving = not isinstance(flow_dot, SymbolicZero)
    cell = _cell(boundary, reach, images, flow, reused=moving)
    outputs, parts = _interpolate(cell), []
    if not isinstance(images_dot, SymbolicZero):
        parts.append(_interpolate(_cell(boundary, reach, images_dot, flow)))
    if moving:
        slope_y, slope_x = _slopes(cell)
        flow_dot = flow_dot.astype(outputs.dtype)
        down, right = (_over_channels(flow_dot[..., axis : axis + 1], images.shape[-1]) for axis in (0, 1))
        parts.append(slope_y * down + slope_x * right)
    tangent = sum(parts[1:], parts[0]) if parts else jnp.zeros_like(outputs)
    return outputs.astype(images.dtype), tangent.astype(images.dtype)
