"""Convolution and max pooling in two formulations that agree: XLA's own operations, and matrix multiplications.

XLA's CPU backend runs small convolutions, and the scatter in the gradient of ``lax.reduce_window``, many times slower
than the hardware allows. There a convolution is written as one matrix multiplication of shifted slices, and pooling
as a selection. Accelerators keep ``lax``.

Both formulations have the same values, the same first derivatives and the same second ones, which the exact gradient
penalty needs. In particular a tie in a pooling window gives all of its gradient to the first maximum in row-major
order, as ``lax.reduce_window`` and PyTorch do; splitting it instead changes training on images with flat regions.
"""

from __future__ import annotations

from functools import reduce
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Implementation = Literal["auto", "lax", "matmul"]


def resolve_implementation(implementation: Implementation) -> Literal["lax", "matmul"]:
    """Returns ``"matmul"`` or ``"lax"``; ``"auto"`` decides by the default backend, at trace time.

    A program compiled on a CPU host for another device must name its implementation: ``"auto"`` sees the host.

    Raises:
        ValueError: the implementation is unknown.
    """
    if implementation not in get_args(Implementation):
        expected = ", ".join(get_args(Implementation))
        raise ValueError(f"implementation must be one of {expected}, got {implementation!r}")
    if implementation == "auto":
        return "matmul" if jax.default_backend() == "cpu" else "lax"
    return implementation


def conv(
    images: Float[Array, "n h w c"],
    kernel: Float[Array, "rows columns c features"],
    *,
    stride: int = 1,
    implementation: Implementation = "auto",
) -> Float[Array, "n h_out w_out features"]:
    """Cross-correlates images with a kernel, padded with zeros so that stride 1 keeps the size.

    An odd kernel size is padded equally on both sides for every stride, as PyTorch does; XLA's ``"SAME"`` would
    shift the strided grid by a pixel on even sizes.

    Args:
        images: Input maps.
        kernel: Weights, in the images' dtype.
        stride: Step between output pixels; ``h_out = ceil(h / stride)``, likewise for the width.
        implementation: ``"lax"``, ``"matmul"``, or ``"auto"`` for the one that is fast on the default backend.

    Returns:
        The output maps.

    Raises:
        ValueError: the implementation is unknown.
    """
    rows, columns = kernel.shape[:2]
    padding = [((size - 1) // 2, size // 2) for size in (rows, columns)]
    if resolve_implementation(implementation) == "lax":
        return lax.conv_general_dilated(
            images, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    if _covers_the_map(images.shape[1:3], padding):
        return _conv_of_whole_map(images, kernel, padding, stride)
    return _conv_of_patches(images, kernel, padding, stride)


def depthwise_conv(images: Float[Array, "n h w c"], kernel: Float[Array, "rows columns c"]) -> Float[Array, "n h w c"]:
    """Cross-correlates every channel with its own kernel, padded with zeros so that the size stays.

    XLA's own operation on every backend: on CPUs a sum of 49 shifted products takes twice its time to second order, and
    seven times its time to compile.

    Args:
        images: Input maps.
        kernel: Weights, in the images' dtype.

    Returns:
        The output maps.
    """
    padding = [((size - 1) // 2, size // 2) for size in kernel.shape[:2]]
    return lax.conv_general_dilated(
        images,
        kernel[:, :, None],
        (1, 1),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1],
    )


def patches(images: Float[Array, "n h w c"], size: int) -> Float[Array, "n h//size w//size size*size*c"]:
    """Cuts images into square patches, so that a linear layer on them is a convolution of that size and stride.

    Rows and columns that fill no patch are dropped.
    """
    n, h, w, c = images.shape
    rows, columns = h // size, w // size
    whole = images[:, : rows * size, : columns * size].reshape(n, rows, size, columns, size, c)
    return whole.swapaxes(2, 3).reshape(n, rows, columns, size * size * c)


def max_pool_3x3(
    images: Float[Array, "n h w c"], *, implementation: Implementation = "auto"
) -> Float[Array, "n h_out w_out c"]:
    """Takes the maximum around every other pixel: windows of 3x3 with stride 2, after a border of one pixel.

    All derivatives go to the first maximum of a window in row-major order; a NaN in a window makes it NaN.

    Args:
        images: Input maps.
        implementation: as in `max_pool_2x2`.

    Returns:
        The pooled maps, ``h_out = ceil(h / 2)``, likewise for the width.

    Raises:
        ValueError: the implementation is unknown.
    """
    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    if resolve_implementation(implementation) == "lax":
        pooled: Array = lax.reduce_window(images, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), border)
        return pooled
    padded = jnp.pad(images, border, constant_values=-jnp.inf)
    n, h, w, c = padded.shape
    windows = [
        lax.slice(padded, (0, row, column, 0), (n, h - 2 + row, w - 2 + column, c), (1, 2, 2, 1))
        for row in range(3)
        for column in range(3)
    ]
    return reduce(_first_maximum, windows)


def max_pool_2x2(
    images: Float[Array, "n h w c"], *, implementation: Implementation = "auto"
) -> Float[Array, "n h//2 w//2 c"]:
    """Takes the maximum of each 2x2 window; an odd last row or column is dropped.

    All derivatives go to the first maximum of a window in row-major order; a NaN in a window makes it NaN.

    Args:
        images: Input maps.
        implementation: ``"lax"``, ``"matmul"`` (here: selections), or ``"auto"`` for the one that is fast on the
            default backend.

    Returns:
        The pooled maps.

    Raises:
        ValueError: the implementation is unknown.
    """
    if resolve_implementation(implementation) == "lax":
        window = (1, 2, 2, 1)
        pooled: Array = lax.reduce_window(images, -jnp.inf, lax.max, window, window, "VALID")
        return pooled
    n, h, w, c = images.shape
    even = lax.slice(images, (0, 0, 0, 0), (n, h // 2 * 2, w // 2 * 2, c))
    windows = even.reshape(n, h // 2, 2, w // 2, 2, c)

    def row_maximum(row: int) -> Array:
        pair = lax.index_in_dim(windows, row, axis=2, keepdims=False)
        left, right = (lax.index_in_dim(pair, i, axis=3, keepdims=False) for i in (0, 1))
        return _first_maximum(left, right)

    return _first_maximum(row_maximum(0), row_maximum(1))


def _first_maximum(first: Array, second: Array) -> Array:
    """The larger one; `first` and its derivative on a tie; NaN where either is, as ``lax.max`` has it."""
    return jnp.where((second > first) | jnp.isnan(second), second, first)


def _conv_of_patches(images: Array, kernel: Array, padding: list[tuple[int, int]], stride: int) -> Array:
    """One matrix multiplication: every output pixel's neighbourhood times the kernel."""
    n, h, w, channels = images.shape
    rows, columns, _, features = kernel.shape
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    shifted = [
        lax.slice(padded, (0, row, column, 0), (n, row + h, column + w, channels), (1, stride, stride, 1))
        for row in range(rows)
        for column in range(columns)
    ]
    h_out, w_out = shifted[0].shape[1:3]
    patches = lax.concatenate(shifted, dimension=3).reshape(-1, rows * columns * channels)
    return (patches @ kernel.reshape(-1, features)).reshape(n, h_out, w_out, features)


def _covers_the_map(size: tuple[int, ...], padding: list[tuple[int, int]]) -> bool:
    """Whether a kernel at any output pixel covers every input pixel, as 3x3 does on maps of up to 2x2."""
    return all(length - 1 <= min(sides) for length, sides in zip(size, padding, strict=True))


def _conv_of_whole_map(images: Array, kernel: Array, padding: list[tuple[int, int]], stride: int) -> Array:
    """One multiplication per output pixel, by the part of the kernel that is on the map.

    On a 2x2 map more than half of a 3x3 neighbourhood is padding; this leaves it out.
    """
    n, h, w, channels = images.shape
    features = kernel.shape[3]
    (top, _), (left, _) = padding
    flat = images.reshape(n, h * w * channels)
    pixels = [
        flat @ kernel[top - y : top - y + h, left - x : left - x + w].reshape(-1, features)
        for y in range(0, h, stride)
        for x in range(0, w, stride)
    ]
    return jnp.stack(pixels, axis=1).reshape(n, -(-h // stride), -(-w // stride), features)
