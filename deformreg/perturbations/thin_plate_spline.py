"""Thin-plate splines: the smoothest flow through the displacements of a few control points."""

from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from deformreg import _checks
from deformreg.perturbations.perturbation import Perturbation, zero_params
from deformreg.warping import Boundary, Order, interpolation_of, warp


def thin_plate_spline(points: int = 3, *, boundary: Boundary = "edge", order: Order = 1) -> Perturbation:
    """Moves control points on a grid, and the pixels between them along the smoothest field, that of least bending.

    The field is linear in the parameters. Its components can exceed those of the control points, by up to half for
    three points per axis and to twice as much for more, so a ball does not bound displacements.

    Args:
        points: control points along each axis, at least 2; they are evenly spaced from border to border.
        boundary: what lies outside the image, see `deformreg.warp`.
        order: of the interpolation, see `deformreg.warp`.

    Returns:
        The family; parameters float[n, points, points, 2], the displacements of the control points in pixels; for
        signals and volumes likewise.

    Raises:
        TypeError: `points` is not an integer.
        ValueError: `points` is below 2, or an unknown `boundary` or `order`. On use: an image that is one pixel long
            along an axis.

    Example:
        >>> import jax.numpy as jnp
        >>> family, images = thin_plate_spline(2), jnp.zeros((1, 5, 5, 1))
        >>> lower_right = family.init(images).at[0, 1, 1].set(1.0)
        >>> field = family.field(lower_right, images)
        >>> jnp.round(field[0, 2, 2], 3).tolist()  # the centre moves by a quarter
        [0.25, 0.25]

    References:
        Bookstein, "Principal Warps: Thin-Plate Splines and the Decomposition of Deformations", IEEE Transactions on
        Pattern Analysis and Machine Intelligence 11, 1989.
        Duchon, "Splines Minimizing Rotation-invariant Semi-norms in Sobolev Spaces", 1977 (other numbers of axes).
    """
    points = _checks.count("points", points, minimum=2)
    _checks.choice("boundary", boundary, get_args(Boundary))
    interpolation_of(order)

    def init(images: Array) -> Array:
        sizes = images.shape[1:-1]
        if min(sizes) < 2:
            raise ValueError(f"thin_plate_spline() needs 2 pixels or more along every axis, got shape {images.shape}")
        return zero_params((images.shape[0], *[points] * len(sizes), len(sizes)), images)

    def field(params: Array, images: Array) -> Array:
        params = params.astype(jnp.promote_types(params.dtype, jnp.float32))
        sizes = images.shape[1:-1]
        at = jnp.asarray(_basis(points, sizes), params.dtype)
        controls = params.reshape(params.shape[0], at.shape[1], len(sizes))
        flow = jnp.einsum("pk,nka->npa", at, controls, precision=jax.lax.Precision.HIGHEST)
        return flow.reshape(params.shape[0], *sizes, len(sizes))

    return Perturbation(
        init=init,
        apply=lambda params, images: warp(images, field(params, images), boundary=boundary, order=order),
        field=field,
        unit="pixels of the control points",
    )


def _basis(points: int, sizes: tuple[int, ...]) -> NDArray[np.float64]:
    """float64[pixels, control points]: the field of each control point that alone moves by one."""
    longest = max(sizes) - 1  # positions in shares of the longest side, for a well-conditioned system
    controls = _grid([np.linspace(0, (size - 1) / longest, points) for size in sizes])
    pixels = _grid([np.arange(size) / longest for size in sizes])
    count, axes = controls.shape
    # Bending energy is least where the bumps' weights are orthogonal to all affine maps, the lower rows.
    affine = np.concatenate([np.ones((count, 1)), controls], axis=1)
    system = np.block([[_bump(controls, controls), affine], [affine.T, np.zeros((axes + 1, axes + 1))]])
    weights = np.linalg.solve(system, np.eye(count + axes + 1, count))
    at: NDArray[np.float64] = np.concatenate([_bump(pixels, controls), np.ones((len(pixels), 1)), pixels], axis=1)
    basis: NDArray[np.float64] = at @ weights
    return basis


def _grid(axes: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def _bump(positions: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """The fundamental solution of the bending energy, by the number of axes: r^3, r^2 log r, r; up to a factor."""
    axes = positions.shape[1]
    distances: NDArray[np.float64] = np.linalg.norm(positions[:, None] - centres[None], axis=-1)
    bump: NDArray[np.float64] = distances ** (4 - axes)
    return bump * np.log(np.where(distances > 0, distances, 1)) if axes == 2 else bump
