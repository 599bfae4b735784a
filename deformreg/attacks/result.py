"""What every attack returns, and the norms a result is measured by."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deformreg import fields
from deformreg.balls import l2, linf
from deformreg.perturbations import Perturbation


class FlowNorms(NamedTuple):
    """Sizes of final flow fields, in pixels, float[n] each: see the functions of these names in `deformreg.fields`."""

    max_component: Float[Array, " n"]
    max_displacement: Float[Array, " n"]
    mean_displacement: Float[Array, " n"]


class DifferenceNorms(NamedTuple):
    """Sizes of image differences, in the images' unit, float[n] each: largest component and Euclidean length."""

    linf: Float[Array, " n"]
    l2: Float[Array, " n"]


class AttackResult(NamedTuple):
    """What an attack found; failures carry the clean image.

    Attributes:
        images: float[n, h, w, c]; where the attack failed, the clean image, bit for bit.
        params: what was found in the perturbation's family, successes and failures alike.
        success: bool[n]: the prediction left the label, or reached the target.
        losses: float[n], the attack's own objective at `params` (higher is better for the attacker).
        norms: of the *final* field, or of the difference for families that move no pixels, at `params`.
        model_calls: int32[n], evaluations spent on each example; a forward pass counts one, a forward and backward
            pass counts one. Queries, for an attack without gradients; a transferred one counts the passes through its
            source as well.
    """

    images: Float[Array, "n h w c"]
    params: Any
    success: Bool[Array, " n"]
    losses: Float[Array, " n"]
    norms: FlowNorms | DifferenceNorms
    model_calls: Int[Array, " n"]


def measure(perturbation: Perturbation, params: Any, images: Float[Array, "n h w c"]) -> FlowNorms | DifferenceNorms:
    """The sizes of perturbations: of their final fields in pixels, or of the image differences they make.

    Args:
        perturbation: the family.
        params: of that family.
        images: the clean images, any range.

    Returns:
        `FlowNorms` for a family with a field, else `DifferenceNorms`.

    Example:
        >>> import jax.numpy as jnp
        >>> from deformreg import flow
        >>> measure(flow(), jnp.full((1, 4, 4, 2), 0.5), jnp.zeros((1, 4, 4, 1))).max_component.tolist()
        [0.5]
    """
    if perturbation.field is not None:
        field = perturbation.field(params, images)
        return FlowNorms(fields.max_component(field), fields.max_displacement(field), fields.mean_displacement(field))
    difference = perturbation.apply(params, images) - images
    return DifferenceNorms(linf(jnp.inf).norm(difference), l2(jnp.inf).norm(difference))
