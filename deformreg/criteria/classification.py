"""The default criterion: the largest logit is the label's."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg.criteria.checks import usable
from deformreg.criteria.criterion import Criterion
from deformreg.losses import cross_entropy, margin


@cache
def classification() -> Criterion:
    """One class per image: broken where the largest logit is not the label's. The default everywhere.

    A logit of -inf says "never this class". Logits predict nothing, and are broken, where one is NaN or +inf, or none
    is finite.

    Returns:
        The criterion: outputs float[n, classes], labels int[n]. Its loss is `deformreg.losses.cross_entropy`, its
        margin `deformreg.losses.margin`.

    Example:
        >>> import jax.numpy as jnp
        >>> classification().broken(jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 1])).tolist()
        [False, True]
    """

    def check_labels(labels: Any, images: tuple[int, ...], outputs: tuple[int, ...] | None) -> Array:
        return _checks.class_indices("labels", labels, images[0], classes=None if outputs is None else outputs[1])

    return Criterion(
        "classification",
        broken=lambda outputs, labels: predicted_classes(outputs) != labels,
        margin=margin,
        loss=cross_entropy,
        check_outputs=_checks.logits,
        check_labels=check_labels,
        one_class=True,
        probabilities=sum_to_one,
    )


def criterion_or_classification(criterion: Criterion | None) -> Criterion:
    """Returns a criterion that was given, or `classification` for None.

    Args:
        criterion: what the caller of an attack or evaluation gave.

    Returns:
        The criterion.

    Raises:
        TypeError: it is neither a criterion nor None.
    """
    if criterion is None:
        return classification()
    return _checks.instance("criterion", criterion, Criterion, "deformreg.criteria.segmentation(0.9)")


def predicted_classes(outputs: Float[Array, "n *rest classes"]) -> Array:
    """The class of the largest logit along the last axis; -1 where one is NaN or +inf, or none is finite."""
    return jnp.where(usable(outputs), jnp.argmax(outputs, axis=-1), -1)


def sum_to_one(outputs: Any) -> bool:
    """Whether outputs on the host are not negative and sum to one along the last axis; false for NaN."""
    return bool((outputs >= 0).all() and abs(outputs.sum(axis=-1) - 1).max() < 1e-3)
