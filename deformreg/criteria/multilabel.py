"""Several yes-or-no labels per image: enough of them are right."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deformreg.criteria import checks
from deformreg.criteria.criterion import Criterion
from deformreg.criteria.shares import needed, needed_margin, share


def multilabel(least: float = 1.0) -> Criterion:
    """Several yes-or-no labels per image: broken where less than a share of them is right.

    Args:
        least: in (0, 1], the share of an image's labels that must be right; 1 asks for all.

    Returns:
        The criterion: outputs float[n, labels], logits that are positive for yes; labels of the same shape, 0 and 1 or
        bool. Its loss is the mean binary cross-entropy. Its margin is minus the logit's distance on the right side, of
        the last label that is needed.

    Raises:
        TypeError: `least` is not a number.
        ValueError: `least` is not in (0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> outputs, labels = jnp.array([[3.0, -1.0, 0.5]]), jnp.array([[1, 0, 0]])  # the last is wrong
        >>> multilabel().broken(outputs, labels).tolist(), multilabel(0.6).broken(outputs, labels).tolist()
        ([True], [False])
        >>> multilabel().margin(outputs, labels).tolist()
        [0.5]
    """
    return _multilabel(share("least", least))


@cache
def _multilabel(least: float) -> Criterion:
    def on_right_side(outputs: Array, labels: Array) -> Array:
        outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
        return jnp.where(labels.astype(bool), outputs, -outputs)

    def broken(outputs: Array, labels: Array) -> Array:
        right = ((outputs > 0) == labels.astype(bool)) & (outputs < jnp.inf)  # false for NaN; -inf is a sure no
        return (jnp.sum(right, axis=1) < needed(least, outputs.shape[1])) | ~(outputs > -jnp.inf).any(axis=1)

    def of_needed_label(outputs: Array, labels: Array) -> Array:
        return needed_margin(least, on_right_side(outputs, labels), jnp.ones(outputs.shape, bool))

    def check_outputs(outputs: Any, count: int, name: str = "logits_fn") -> Array:
        return checks.outputs(outputs, count, name, "[n, labels]", rank=2)

    def check_labels(labels: Any, images: tuple[int, ...], outputs: tuple[int, ...] | None) -> Any:
        return checks.yes_or_no("labels", labels, images[0], outputs)

    return Criterion(
        f"multi-label, at least {least:.4g} of the labels",
        broken,
        of_needed_label,
        lambda outputs, labels: jnp.mean(jax.nn.softplus(-on_right_side(outputs, labels)), axis=1),
        check_outputs,
        check_labels,
        probabilities=lambda outputs: bool(((outputs >= 0) & (outputs <= 1)).all()),
    )
