"""Regression: the error is within a bound."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg.criteria import checks
from deformreg.criteria.criterion import Criterion, PerExample, from_margin


def largest_error(outputs: Float[Array, "n ..."], labels: Float[Array, "n ..."]) -> Float[Array, " n"]:
    """The largest absolute difference between an example's outputs and labels.

    Args:
        outputs: one number per example, or an array of them.
        labels: of the same shape.

    Returns:
        One error per example, in the labels' unit; float32 or wider.

    Example:
        >>> import jax.numpy as jnp
        >>> largest_error(jnp.array([[1.0, 5.0]]), jnp.array([[1.5, 3.0]])).tolist()
        [2.0]
    """
    return jnp.max(jnp.abs(_differences(outputs, labels)), axis=1)


def regression(bound: float, *, error: PerExample = largest_error) -> Criterion:
    """Numbers per image: broken where the error is above a bound.

    Where the outputs equal the labels the loss has no slope: an attack from a zero start stays there, one from a random
    start does not.

    Args:
        bound: the largest error that still is right, in the unit of `error`, at least 0.
        error: ``(outputs, labels) -> float[n]``; by default the largest absolute difference.

    Returns:
        The criterion: outputs float[n] or float[n, ...], labels of the same shape. Its loss is half the squared
        difference, summed over an example's outputs: a normal law's cross-entropy up to a constant. Its margin is
        ``error - bound``.

    Raises:
        TypeError: `bound` is not a number, or `error` is not a function.
        ValueError: `bound` is negative or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> right = regression(0.5)
        >>> outputs, labels = jnp.array([1.0, 2.0]), jnp.array([1.25, 1.0])
        >>> right.broken(outputs, labels).tolist(), right.margin(outputs, labels).tolist()
        ([False, True], [-0.25, 0.5])
    """
    _checks.radius("bound", bound)
    _checks.function("error", error)
    return _regression(float(bound), error)


@cache
def _regression(bound: float, error: PerExample) -> Criterion:
    def check_outputs(outputs: Any, count: int, name: str = "logits_fn") -> Array:
        return checks.outputs(outputs, count, name, "[n] or [n, ...]", rank=1)

    def check_labels(labels: Any, images: tuple[int, ...], outputs: tuple[int, ...] | None) -> Any:
        return checks.numbers("labels", labels, images[0], outputs)

    return from_margin(
        lambda outputs, labels: error(outputs, labels) - bound,
        name=f"regression, error at most {bound:.4g}",
        loss=lambda outputs, labels: jnp.sum(_differences(outputs, labels) ** 2, axis=1) / 2,
    )._replace(check_outputs=check_outputs, check_labels=check_labels)


def _differences(outputs: Array, labels: Array) -> Array:
    """float[n, numbers], float32 or wider."""
    dtype = jnp.promote_types(outputs.dtype, jnp.float32)
    return (outputs.astype(dtype) - labels.astype(dtype)).reshape(outputs.shape[0], -1)
