"""Penalties of several families from one pass through the model."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._families import check_layout, family_or_flow
from deformreg.penalties.exact import LossFn, Size, image_gradients, sizes_of, squared_norm
from deformreg.perturbations import Perturbation, pull_back


def gradient_penalties(
    loss_fn: LossFn,
    images: Float[Array, "n *space c"],
    perturbations: Any,
    *,
    size: Size = squared_norm,
    has_aux: bool = False,
) -> tuple[Any, Any]:
    """`gradient_penalty` for several families at the cost of one: they share the image gradient.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called once.
        images: any range.
        perturbations: families in a tuple, list or dictionary, or one family.
        size: ``gradients -> float[n]``, the same for all families.
        has_aux: whether `loss_fn` returns ``(losses, aux)``.

    Returns:
        ``(penalties, losses[n])``: the penalties, float[n] each, in the structure of the families; with `has_aux`
        ``(penalties, (losses, aux))``.

    Raises:
        TypeError: as `gradient_penalty`, or something other than families.
        ValueError: as `gradient_penalty`, or no family.

    Example:
        >>> import jax.numpy as jnp
        >>> from deformreg import additive, flow
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1)
        >>> families = {"flow": flow(), "pixels": additive()}
        >>> penalties, losses = gradient_penalties(lambda images: images.sum((1, 2, 3)), ramp, families)
        >>> {name: each.tolist() for name, each in penalties.items()}
        {'flow': [3.0], 'pixels': [4.0]}
    """
    images = _checks.images(images)
    families = jax.tree.leaves(perturbations, is_leaf=is_family)
    if not families:
        raise ValueError(f"perturbations must hold at least one family, got {_checks.described(perturbations)}")
    for family in families:
        check_layout(family_or_flow(family), images.shape)
    gradients, losses = image_gradients(loss_fn, images, has_aux=has_aux)

    def penalty(family: Perturbation) -> Array:
        return sizes_of(size, pull_back(family, gradients, images), len(images))

    return jax.tree.map(penalty, perturbations, is_leaf=is_family), losses


def is_family(value: Any) -> bool:
    """Whether a value is one family, which as a tuple of functions JAX would take for several leaves."""
    return isinstance(value, Perturbation)
