"""Affine maps of whole images."""

from __future__ import annotations

from typing import get_args

import jax.numpy as jnp
from jaxtyping import Array

from deformreg import _checks, fields
from deformreg.perturbations.perturbation import Perturbation, zero_params
from deformreg.warping import Boundary, warp


def affine(
    *,
    parameters: tuple[str, ...] = ("rotation", "dy", "dx"),
    boundary: Boundary = "edge",
) -> Perturbation:
    """Moves all pixels of an image by one affine map about its centre. It does not take signals or volumes.

    Args:
        parameters: the free ones of `deformreg.fields.AFFINE_PARAMETERS`, in this order; the others stay zero.
        boundary: what lies outside the image, see `deformreg.warp`.

    Returns:
        The family; parameters float[n, len(parameters)]: radians, pixels, log scales, pixels per pixel.

    Raises:
        TypeError: one name in place of a tuple.
        ValueError: an unknown, repeated or missing parameter name, or an unknown `boundary`.

    Example:
        >>> import jax.numpy as jnp
        >>> image = jnp.arange(9.0).reshape(1, 3, 3, 1)
        >>> quarter_turn = jnp.array([[jnp.pi / 2]])
        >>> jnp.round(affine(parameters=("rotation",)).apply(quarter_turn, image)[0, 0, :, 0]).tolist()
        [2.0, 5.0, 8.0]
    """
    _checks.choice("boundary", boundary, get_args(Boundary))
    if isinstance(parameters, str):
        raise TypeError(f'parameters must be a tuple of names, got {parameters!r}: give ("{parameters}",)')
    for name in parameters:
        _checks.choice("parameters", name, fields.AFFINE_PARAMETERS)
    if not parameters or len(set(parameters)) != len(parameters):
        raise ValueError(f"parameters must be one or more different names, got {parameters}")

    def init(images: Array) -> Array:
        if images.ndim != 4:
            raise ValueError(f"affine() moves images [n, h, w, c] only, got shape {images.shape}")
        return zero_params((images.shape[0], len(parameters)), images)

    def field(params: Array, images: Array) -> Array:
        # Positions are computed in float32 at least: a 16-bit type cannot hold them.
        params = params.astype(jnp.promote_types(params.dtype, jnp.float32))
        given = {name: params[:, column] for column, name in enumerate(parameters)}
        zeros = jnp.zeros_like(params[:, 0])
        full = jnp.stack([given.get(name, zeros) for name in fields.AFFINE_PARAMETERS], axis=1)
        return fields.affine_flow(full, images.shape[1], images.shape[2])

    return Perturbation(
        init=init,
        apply=lambda params, images: warp(images, field(params, images), boundary=boundary),
        field=field,
        unit="pixels" if set(parameters) <= {"dy", "dx"} else "parameters",
    )
