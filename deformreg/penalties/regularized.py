"""A loss function turned into a regularized one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg.penalties.exact import LossFn
from deformreg.penalties.several import gradient_penalties, is_family
from deformreg.perturbations import flow


class Metrics(NamedTuple):
    """The parts of a regularized loss.

    Attributes:
        losses: float[n], without the penalty.
        penalties: float[n], not weighted; of several families in their structure.
        aux: what the loss function returned beside the losses, with ``has_aux=True``; else None.
    """

    losses: Float[Array, " n"]
    penalties: Any
    aux: Any = None


def regularized(
    loss_fn: LossFn,
    perturbation: Any = None,
    weight: Any = 1.0,
    *,
    rule: Callable[..., tuple[Any, Any]] = gradient_penalties,
    has_aux: bool = False,
) -> Callable[[Array], tuple[Array, Metrics]]:
    """Adds a weighted penalty to a loss function, example by example.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced.
        perturbation: the family, or several in a tuple, list or dictionary; None means ``flow()``.
        weight: at least 0: a number, or float[n], one per example; for several families in their structure, or one
            for all of them.
        rule: ``(loss_fn, images, perturbation, has_aux=...) -> (penalties, losses)``: a penalty of
            `deformreg.penalties`, its other options bound with `functools.partial`. Only the default takes several
            families. `displacement_penalty` takes none: wrap it,
            ``lambda loss_fn, images, family, **options: displacement_penalty(loss_fn, images, 0.5, **options)``.
        has_aux: whether `loss_fn` returns ``(losses, aux)``.

    Returns:
        ``images -> (regularized losses[n], Metrics)``. For training, take the mean of the losses.

    Raises:
        ValueError: a negative weight, or weights for other families; on the call, a weight that is neither one number
            nor one per example.

    Example:
        >>> import jax.numpy as jnp
        >>> ramps = jnp.arange(8.0).reshape(2, 1, 4, 1)
        >>> total = lambda images: images.sum((1, 2, 3))
        >>> losses, metrics = regularized(total, weight=jnp.array([0.0, 2.0]))(ramps)
        >>> losses.tolist(), metrics.losses.tolist(), metrics.penalties.tolist()
        ([6.0, 28.0], [6.0, 22.0], [3.0, 3.0])
    """
    perturbation = flow() if perturbation is None else perturbation
    families: Any = jax.tree.structure(perturbation, is_leaf=is_family)
    if isinstance(weight, (dict, list, tuple)) and jax.tree.structure(weight) != families:
        raise ValueError(
            f"weight must be one number, one per example, or a weight for each family as {families}, got one as "
            f"{jax.tree.structure(weight)}"
        )
    if jax.tree.structure(weight) != families:
        weight = jax.tree.unflatten(families, [weight] * families.num_leaves)
    for leaf in jax.tree.leaves(weight):
        _checks.non_negative("weight", leaf)

    def function(images: Array) -> tuple[Array, Metrics]:
        penalties, result = rule(loss_fn, images, perturbation, has_aux=has_aux)
        losses, aux = result if has_aux else (result, None)
        terms: list[Array] = jax.tree.leaves(jax.tree.map(_weighted, penalties, weight))
        return losses + sum(terms[1:], terms[0]).astype(losses.dtype), Metrics(losses, penalties, aux)

    return function


def _weighted(penalties: Array, weight: Any) -> Array:
    if jnp.shape(weight) not in ((), penalties.shape):
        raise ValueError(
            f"weight must be one number, or one per example, shape {penalties.shape}, got {_checks.described(weight)}"
        )
    return jnp.asarray(weight, penalties.dtype) * penalties
