"""The type of a perturbation family, and the pullback of image gradients to its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import aligned, wide

Params = Any
"""A pytree of arrays whose first axis is the example; one array for every family of this module."""


def _unconstrained(params: Params, images: Array) -> Params:
    del images
    return params


def zero_params(shape: tuple[int, ...], images: Array) -> Array:
    """The identity's parameters, float32 or wider: in 16 bits small steps vanish and rounding exceeds a ball."""
    return jnp.zeros(shape, jnp.promote_types(images.dtype, jnp.float32))


class Perturbation(NamedTuple):
    """A family of image perturbations.

    Attributes:
        init: ``images -> params``: the identity's parameters, zeros, first axis the example; preferably float32 or
            wider for images of any type, as in the families of this module.
        apply: ``(params, images) -> images`` of the same shape; ``apply(init(images), images)`` equals `images`.
        pullback: ``(image_gradients, images) -> gradients`` with respect to the parameters at the identity, in
            closed form; None derives it from `apply`. `pull_back` calls it with float32 or wider.
        constrain: ``(params, images) -> params``: the nearest parameters with valid images.
        field: ``(params, images) -> flow`` in pixels, for families that move pixels; None for the others.
        unit: the unit of the parameters, for reports: ``"pixels"`` for displacements, ``"image"`` for differences of
            pixel values, otherwise in words.
        unbounded: for a family that bounds its own perturbations, the same family without the bound; else None.
    """

    init: Callable[[Array], Params]
    apply: Callable[[Params, Array], Array]
    pullback: Callable[[Array, Array], Params] | None = None
    constrain: Callable[[Params, Array], Params] = _unconstrained
    field: Callable[[Params, Array], Array] | None = None
    unit: str = "parameters"
    unbounded: Perturbation | None = None


def pull_back(
    perturbation: Perturbation,
    image_gradients: Float[Array, "n *space c"],
    images: Float[Array, "n *space c"],
) -> Params:
    """Turns gradients with respect to images into gradients with respect to a family's parameters at the identity.

    With it, several families share one pass through the model.

    Args:
        perturbation: the family.
        image_gradients: gradients of one loss per example with respect to `images`.
        images: where the gradients were taken, any range.

    Returns:
        The gradients, a pytree like ``perturbation.init(images)``.

    Raises:
        ValueError: the two arrays differ in shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from deformreg import flow
        >>> image = jnp.array([0.0, 1.0, 4.0]).reshape(1, 1, 3, 1)
        >>> pull_back(flow(), jnp.ones_like(image), image)[0, 0, :, 1].tolist()
        [1.0, 3.0, 0.0]
    """
    images = _checks.images(images)
    perturbation = _checks.instance("perturbation", perturbation, Perturbation, "deformreg.flow()")
    image_gradients = _checks.images(image_gradients, "image_gradients")
    if image_gradients.shape != images.shape:
        raise ValueError(f"image_gradients must have the images' shape {images.shape}, got {image_gradients.shape}")
    if perturbation.pullback is not None:
        return perturbation.pullback(wide(image_gradients), wide(images))
    perturbed, vjp = jax.vjp(
        lambda params: perturbation.apply(params, images), aligned(perturbation.init(images), images)
    )
    return vjp(image_gradients.astype(perturbed.dtype))[0]
