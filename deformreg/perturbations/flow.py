"""Flows: a displacement of its own for every pixel."""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array

from deformreg import _checks, fields
from deformreg.perturbations.perturbation import Perturbation, zero_params
from deformreg.warping import (
    Boundary,
    Order,
    central_differences,
    forward_differences,
    interpolation_of,
    reach_of,
    warp,
)

Units = Literal["pixels", "normalized"]


def flow(
    *, boundary: Boundary = "edge", units: Units = "pixels", within: float | None = None, order: Order = 1
) -> Perturbation:
    """Moves every pixel independently: the paper's adversarial deformation.

    The gradient at the zero flow has a closed form: the image gradient times the images' forward differences (with
    ``order=3`` their central differences), summed over the channels. It needs no warp, no gather and no scatter.

    Args:
        boundary: what lies outside the image, see `deformreg.warp`.
        units: ``"pixels"``, last axis (dy, dx), for volumes (dz, dy, dx); or ``"normalized"``, PyTorch's [-1, 1] units,
            last axis (x, y) or (x, y, z).
        within: an upper bound on every component, in pixels for either `units`, such as the radius of an attack's
            ball. Below two pixels the warp is faster, see `deformreg.warp`.
        order: of the interpolation: 1 for linear, 3 for cubic, which is smooth, see `deformreg.warp`.

    Returns:
        The family; parameters float[n, h, w, 2] in `units`, for signals float[n, t, 1], for volumes
        float[n, d, h, w, 3].

    Raises:
        TypeError: `within` is not a number.
        ValueError: unknown `boundary`, `units` or `order`, or `within` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> image = jnp.array([0.0, 1.0, 4.0]).reshape(1, 1, 3, 1)
        >>> family = flow()
        >>> family.apply(family.init(image) + 1.0, image).ravel().tolist()
        [1.0, 4.0, 4.0]
    """
    _checks.choice("boundary", boundary, get_args(Boundary))
    _checks.choice("units", units, get_args(Units))
    interpolation_of(order)
    reach_of(within)

    def in_pixels(params: Array) -> Array:
        return params if units == "pixels" else fields.pixels_from_normalized(params)

    def pullback(image_gradients: Array, images: Array) -> Array:
        slopes = (forward_differences if order == 1 else central_differences)(images, boundary=boundary)
        gradient = jnp.stack([jnp.sum(image_gradients * slope, axis=-1) for slope in slopes], axis=-1)
        if units == "pixels":
            return gradient
        # In (x, y) order. The scales of a signal's or volume's gradient likewise.
        scales = jnp.array(fields.pixels_per_unit(images.shape[1:-1])[::-1], gradient.dtype)
        return gradient[..., ::-1] * scales.reshape((1,) * (gradient.ndim - 1) + scales.shape)

    return Perturbation(
        init=lambda images: zero_params(_checks.flow_shape(images.shape), images),
        apply=lambda params, images: warp(images, in_pixels(params), boundary=boundary, within=within, order=order),
        pullback=pullback,
        field=lambda params, images: in_pixels(params),
        unit=units,
        unbounded=None if within is None else flow(boundary=boundary, units=units, order=order),
    )
