"""Interpolation between the pixels around a position: linear, or cubic convolution.

Cubic convolution (Keys, with a = -1/2) is the smooth choice here, not the cubic B-spline: it interpolates without a
filter over the whole image, so that the zero flow returns the images bit for bit, and its derivative at a grid point is
the central difference.

References:
    Keys, "Cubic Convolution Interpolation for Digital Image Processing", IEEE Transactions on Acoustics, Speech, and
    Signal Processing 29, 1981, equation 4.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from jaxtyping import Array


class Interpolation(NamedTuple):
    """How the pixels around a position give its value.

    Attributes:
        taps: the pixels along an axis, as offsets from the pixel before the position.
        values: ``(pixels, weights) -> Array``: the value, from the pixels in the order of `offsets` and the position
            between the two middle taps along each axis, in [0, 1).
        slopes: ``(pixels, weights) -> list[Array]``: the derivatives of `values` with respect to each weight.
    """

    taps: tuple[int, ...]
    values: Callable[[list[Array], list[Array]], Array]
    slopes: Callable[[list[Array], list[Array]], list[Array]]

    def offsets(self, axes: int) -> list[tuple[int, ...]]:
        """The pixels as offsets along each axis, the last axis fastest: for two taps (0, 0), (0, 1), (1, 0), (1, 1)."""
        return list(itertools.product(self.taps, repeat=axes))


def _linear(corners: list[Array], weights: list[Array]) -> Array:
    """The multilinear interpolation between the corners of a cell."""
    for weight in reversed(weights):
        corners = [low + weight * (high - low) for low, high in zip(corners[::2], corners[1::2], strict=True)]
    return corners[0]


def _linear_slopes(corners: list[Array], weights: list[Array]) -> list[Array]:
    """The derivatives of `_linear` with respect to the position inside the cell, along each axis."""
    axes = range(len(weights))
    pixels = dict(zip(LINEAR.offsets(len(axes)), corners, strict=True))

    @cache
    def difference(corner: tuple[int, ...], along: tuple[int, ...]) -> Array:
        if not along:
            return pixels[corner]
        first, *others = along
        beyond = *corner[:first], 1, *corner[first + 1 :]
        return difference(beyond, tuple(others)) - difference(corner, tuple(others))

    # The interpolation is a polynomial in the weights; its coefficients are mixed differences at the first corner.
    subsets = [along for count in axes for along in itertools.combinations(axes, count + 1)]
    coefficients = {along: difference((0,) * len(axes), along) for along in subsets}

    def slope(axis: int) -> Array:
        left = [coefficients[tuple(each for each in axes if corner[each])] for corner in pixels if corner[axis]]
        for weight in reversed(weights[:axis] + weights[axis + 1 :]):
            left = [low + weight * high for low, high in zip(left[::2], left[1::2], strict=True)]
        return left[0]

    return [slope(axis) for axis in axes]


def _cubic(pixels: list[Array], weights: list[Array], slope_along: int | None = None) -> Array:
    """Cubic convolution, or its derivative along one axis."""
    for axis in reversed(range(len(weights))):
        kernel = _keys_slope if axis == slope_along else _keys
        fours = zip(pixels[::4], pixels[1::4], pixels[2::4], pixels[3::4], strict=True)
        pixels = [kernel(four, weights[axis]) for four in fours]
    return pixels[0]


def _keys(pixels: tuple[Array, ...], weight: Array) -> Array:
    linear, square, cube = _coefficients(pixels)
    return pixels[1] + weight * (linear + weight * (square + weight * cube))


def _keys_slope(pixels: tuple[Array, ...], weight: Array) -> Array:
    linear, square, cube = _coefficients(pixels)
    return linear + weight * (2 * square + 3 * weight * cube)


def _coefficients(pixels: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """The coefficients of the cubic polynomial between the second and the third of four pixels in a row."""
    first, second, third, fourth = pixels
    cube = 1.5 * (second - third) + 0.5 * (fourth - first)
    return 0.5 * (third - first), first - 2.5 * second + 2 * third - 0.5 * fourth, cube


def _cubic_slopes(pixels: list[Array], weights: list[Array]) -> list[Array]:
    return [_cubic(pixels, weights, axis) for axis in range(len(weights))]


LINEAR = Interpolation((0, 1), _linear, _linear_slopes)
CUBIC = Interpolation((-1, 0, 1, 2), _cubic, _cubic_slopes)
