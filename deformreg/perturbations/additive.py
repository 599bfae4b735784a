"""Additive perturbations of pixel values."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from deformreg import _checks
from deformreg.perturbations.perturbation import Perturbation, zero_params


def additive(*, image_range: tuple[float, float] | None = None) -> Perturbation:
    """Adds a value to every pixel and channel: the classic adversarial perturbation.

    Args:
        image_range: the range of ``images + params`` after `constrain`, which attacks call after every step; None for
            no range.

    Returns:
        The family; parameters in the images' shape and unit.

    Raises:
        ValueError: the range is empty.

    Example:
        >>> import jax.numpy as jnp
        >>> family = additive(image_range=(0.0, 1.0))
        >>> image = jnp.full((1, 1, 1, 1), 0.75)
        >>> family.constrain(jnp.full((1, 1, 1, 1), 0.5), image).item()
        0.25
    """
    if image_range is not None:
        image_range = _checks.image_range(image_range)

    def constrain(params: Array, images: Array) -> Array:
        if image_range is None:
            return params
        # Clips the parameters: a clipped sum minus the images could leave a ball by rounding.
        return jnp.clip(params, image_range[0] - images, image_range[1] - images)

    return Perturbation(
        init=lambda images: zero_params(images.shape, images),
        apply=lambda params, images: images + params.astype(images.dtype),
        pullback=lambda image_gradients, images: image_gradients,
        constrain=constrain,
        unit="image",
    )
