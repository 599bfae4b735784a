"""Diffeomorphic flows: smooth maps that do not fold, by integration of a velocity field."""

from __future__ import annotations

import jax
from jaxtyping import Array

from deformreg import _checks
from deformreg.perturbations.flow import flow
from deformreg.perturbations.lowres_flow import lowres_flow
from deformreg.perturbations.perturbation import Perturbation
from deformreg.warping import Boundary, Order, warp


def diffeomorphic(
    stride: int = 1, *, sigma: float = 1.0, num_squarings: int = 6, boundary: Boundary = "edge", order: Order = 1
) -> Perturbation:
    """Moves pixels along a smooth velocity field for one unit of time: the map is smooth and has an inverse.

    The flow is the field's exponential, by scaling and squaring: the velocity divided by ``2 ** num_squarings`` is a
    short flow, which is composed with itself `num_squarings` times. On a pixel grid folds remain possible where the
    velocity is rough; `deformreg.fields.folds` counts them, and so do the norms of every attack's result.

    Args:
        stride: pixels between the nodes of the velocity field, see `lowres_flow`.
        sigma: standard deviation in pixels of the Gaussian blur of the velocity field.
        num_squarings: the number of compositions, at least 0. The short flow should be below half a pixel.
        boundary: what lies outside the image, see `deformreg.warp`. The velocity continues with its edge values.
        order: of the interpolation of the images, see `deformreg.warp`.

    Returns:
        The family; the parameters are the velocities in pixels per unit of time, shaped as those of `lowres_flow`. No
        component of the flow exceeds that of the fastest velocity.

    Raises:
        TypeError: a count that is not an integer.
        ValueError: a number out of range, or an unknown `boundary` or `order`.

    Example:
        >>> import jax.numpy as jnp
        >>> family, images = diffeomorphic(sigma=0.0), jnp.zeros((1, 1, 8, 1))
        >>> jnp.round(family.field(jnp.full((1, 1, 8, 2), jnp.array([0.0, 2.0])), images)[0, 0, 3], 4).tolist()
        [0.0, 2.0]

    References:
        Arsigny et al., "A Log-Euclidean Framework for Statistics on Diffeomorphisms", MICCAI 2006 (scaling and
        squaring of a stationary velocity field).
    """
    velocity = lowres_flow(stride, sigma=sigma, boundary=boundary).field
    assert velocity is not None
    moving = flow(boundary=boundary, order=order)
    num_squarings = _checks.count("num_squarings", num_squarings, minimum=0)

    def field(params: Array, images: Array) -> Array:
        short = velocity(params, images) / 2**num_squarings
        flow: Array = jax.lax.fori_loop(0, num_squarings, lambda _, each: each + warp(each, each), short)
        return flow

    def pullback(image_gradients: Array, images: Array) -> Array:
        # At the identity the exponential's derivative is the identity.
        assert moving.pullback is not None
        zeros, transposed = init(images), moving.pullback(image_gradients, images)
        gradients: Array = jax.vjp(lambda params: velocity(params, images), zeros)[1](transposed.astype(zeros.dtype))[0]
        return gradients

    init = lowres_flow(stride).init
    return Perturbation(
        init=init,
        apply=lambda params, images: moving.apply(field(params, images), images),
        pullback=pullback,
        field=field,
        unit="pixels",
    )
