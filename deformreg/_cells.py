"""The pixels around every sampling position of a warp: gathered, or chosen among shifted copies of the image.

For small displacements the choice replaces the gather: CPUs vectorize it, and TPUs have no fast gather.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deformreg._arrays import pad_examples
from deformreg._interpolation import LINEAR, Interpolation

Boundary = Literal["zeros", "edge", "reflect"]

_PADDING = {"zeros": "constant", "edge": "edge", "reflect": "reflect"}


def read_cell(
    interpolation: Interpolation, boundary: Boundary, reach: int | None, images: Array, flow: Array, *,
    reused: bool = False,
) -> tuple[list[Array], list[Array]]:  # fmt: skip
    """The pixels around every sampling position that an interpolation reads, in the order of its offsets, and the
    position inside the cell along each axis, in [0, 1).

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
    axes = range(flow.shape[-1])
    shifts = [whole[..., axis] for axis in axes]
    if reach is not None:
        pixels = _chosen(interpolation, reach, images, shifts)
    elif reused and interpolation == LINEAR and _packable(boundary, images):
        pixels = _packed(boundary, images, shifts)
    else:
        pixels = _gathered(interpolation, boundary, images, shifts)
    return pixels, [weights[..., axis : axis + 1] for axis in axes]


def _gathered(interpolation: Interpolation, boundary: Boundary, images: Array, shifts: list[Array]) -> list[Array]:
    """The pixels around ``p + shifts`` at an interpolation's offsets, each [n, ..., c]."""
    positions = _positions(shifts)
    return [
        _read(boundary, images, [position + offset for position, offset in zip(positions, offsets, strict=True)])
        for offsets in interpolation.offsets(len(shifts))
    ]


def _positions(shifts: list[Array]) -> list[Array]:
    """The positions ``p + shifts`` along each axis, int32[n, ...] each, which may lie outside the image."""

    def along(axis: int, shift: Array) -> Array:
        places = [-1 if each == axis else 1 for each in range(len(shifts))]
        return jnp.arange(shift.shape[1 + axis]).reshape(1, *places) + shift.astype(jnp.int32)

    return [along(axis, shift) for axis, shift in enumerate(shifts)]


def _read(boundary: Boundary, images: Array, positions: list[Array]) -> Array:
    """The pixels at integer positions, [n, ...] along each axis, which may lie outside the image."""
    sizes = images.shape[1:-1]
    bounds = [(each >= 0) & (each < size) for each, size in zip(positions, sizes, strict=True)]
    if boundary == "reflect":
        positions = [_mirror(each, size) for each, size in zip(positions, sizes, strict=True)]
    pixels = _take(images, [jnp.clip(each, 0, size - 1) for each, size in zip(positions, sizes, strict=True)])
    inside = reduce(jnp.logical_and, bounds)
    return jnp.where(inside[..., None], pixels, 0) if boundary == "zeros" else pixels


def _take(images: Array, positions: list[Array]) -> Array:
    """The pixels at integer positions, [n, ...] along each axis; all must exist."""
    count, *sizes, channels = images.shape

    def take(pixels: Array, index: Array) -> Array:
        return pixels.at[index].get(mode="promise_in_bounds")

    # One index into a list of pixels: for one channel, CPUs read a third faster than by row and column.
    indices = positions[0]
    for position, size in zip(positions[1:], sizes[1:], strict=True):
        indices = indices * size + position
    return jax.vmap(take)(images.reshape(count, math.prod(sizes), channels), indices)


def _packable(boundary: Boundary, images: Array) -> bool:
    """Whether `_packed` equals `_gathered` (mirrored cells are reversed, so not for "reflect") and is faster.

    Decided when the program is traced; the choice affects speed only, so compiling for another platform is safe.
    """
    # Measured on CPUs: up to 4 channels the flow gradient takes 0.4 to 0.9 of the time, from 8 channels on twice.
    return boundary != "reflect" and images.shape[-1] <= 4 and jax.default_backend() == "cpu"


def _packed(boundary: Boundary, images: Array, shifts: list[Array]) -> list[Array]:
    """The same as `_gathered` if linear, by one gather from copies of the images: each pixel beside those of its cell.

    XLA for CPUs fuses four gathers into a single result. With two results (outputs and slopes) it computes each in a
    pass of its own, with its own index arithmetic; one gather of whole cells is then faster for few channels.
    """
    channels, axes = images.shape[-1], len(shifts)
    margin = 2 if boundary == "zeros" else 1  # the outermost cells then equal every cell further out
    padded = pad(boundary, images, margin, axes=range(1, axes + 1))
    sizes = [size - 1 for size in padded.shape[1:-1]]
    every = LINEAR.offsets(axes)
    cells = jnp.concatenate([_window(padded, corner, sizes) for corner in every], axis=-1)
    positions = [
        jnp.clip(position + margin, 0, size - 1) for position, size in zip(_positions(shifts), sizes, strict=True)
    ]
    pixels = _take(cells, positions)
    return [pixels[..., number * channels : (number + 1) * channels] for number in range(len(every))]


def _window(images: Array, start: Sequence[int], sizes: Sequence[int]) -> Array:
    """The part of images of these sizes that begins at `start`."""
    return images[:, *(slice(at, at + size) for at, size in zip(start, sizes, strict=True))]


def _mirror(index: Array, size: int) -> Array:
    period = max(2 * (size - 1), 1)
    index = index % period
    return jnp.minimum(index, period - index)


def _chosen(interpolation: Interpolation, reach: int, images: Array, shifts: list[Array]) -> list[Array]:
    """The same as `_gathered`, from shifted copies of padded images; shifts in [-reach, reach - 1]."""
    sizes, numbers, taps = shifts[0].shape[1:], range(-reach, reach), interpolation.taps
    margin = reach - taps[0]

    def choose(options: list[Array], whole: Array) -> Array:
        chosen = options[-1]
        for number, option in zip(numbers[:-1], options, strict=False):
            chosen = jnp.where((whole == number)[..., None], option, chosen)
        return chosen

    def shifted(offsets: tuple[int, ...]) -> Array:
        return _window(images, [margin + offset for offset in offsets], sizes)

    # Offsets are relative to the shift along the axes that are done, and absolute along the others.
    pixels: Callable[[tuple[int, ...]], Array] = shifted
    for axis, whole in enumerate(shifts):
        offsets = [taps] * (axis + 1) + [range(-margin, margin + 1)] * (len(shifts) - axis - 1)
        pixels = {
            each: choose([pixels((*each[:axis], number + each[axis], *each[axis + 1 :])) for number in numbers], whole)
            for each in itertools.product(*offsets)
        }.__getitem__
    return [pixels(offsets) for offsets in interpolation.offsets(len(shifts))]


def pad(boundary: Boundary, images: Array, width: int, axes: Sequence[int]) -> Array:
    """Pads the spatial axes by `width` on both sides."""
    for axis in axes:
        widths = [(width, width) if index == axis else (0, 0) for index in range(1, images.ndim)]
        mode = "edge" if boundary == "reflect" and images.shape[axis] == 1 else _PADDING[boundary]
        images = pad_examples(images, widths, mode)
    return images
