"""Classification losses, one value per example, unreduced: higher is worse for the model.

Attacks ascend them and penalties differentiate them. Labels are integers in [0, classes); the cross-entropy also takes
soft labels, one probability per class.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from deformreg import _checks


def _arguments(logits: Array, labels: Array, *, classes: int = 2) -> tuple[Array, Array]:
    logits = _checks.floating("logits", logits, rank=2, axes="[n, classes]")
    if logits.shape[1] < classes:
        raise ValueError(f"logits must have at least {classes} classes here, got {logits.shape[1]}")
    labels = _checks.class_indices("labels", labels, logits.shape[0], classes=logits.shape[1])
    _checks.not_probabilities("logits", logits)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), labels


def _hot(logits: Array, labels: Array) -> Array:
    return labels[:, None] == jnp.arange(logits.shape[1])[None, :]


def _picked(logits: Array, labels: Array) -> Array:
    # A gather would need a scatter in its derivatives; a product with a one-hot row does not.
    hot = _hot(logits, labels)
    # Traced labels cannot be checked: outside the classes they give NaN, not a finite loss.
    return jnp.where(hot.any(axis=1), jnp.sum(jnp.where(hot, logits, 0), axis=1), jnp.nan)


def _largest(logits: Array, ranks: tuple[int, ...]) -> list[Array]:
    """The logits at these ranks, 1 for the largest."""
    # JAX cannot differentiate a sort of what is sharded over explicit mesh axes.
    order = jnp.argsort(jax.lax.stop_gradient(logits), axis=1)
    return [_picked(logits, order[:, -rank]) for rank in ranks]


def _others(logits: Array, labels: Array) -> Array:
    return jnp.where(_hot(logits, labels), -jnp.inf, logits)


def cross_entropy(
    logits: Float[Array, "n classes"], labels: Int[Array, " n"] | Float[Array, "n classes"]
) -> Float[Array, " n"]:
    """The negative log-likelihood of the labels, or its mean over soft labels.

    Soft labels may miss the sum 1 by rounding, by up to a hundredth.

    Args:
        logits: unnormalized log-probabilities.
        labels: the right classes, or one probability per class: soft labels, of mixed images or smoothed.

    Returns:
        One loss per example, at least 0, in nats; float32 or wider.

    Raises:
        TypeError: integer logits, or floating labels of shape [n]: soft labels are [n, classes].
        ValueError: shapes that do not fit, labels outside the classes, or soft labels that do not sum to 1.

    Example:
        >>> import jax.numpy as jnp
        >>> round(cross_entropy(jnp.zeros((1, 10)), jnp.array([3])).item(), 4)
        2.3026
        >>> round(cross_entropy(jnp.array([[0.0, 2.0]]), jnp.array([[0.5, 0.5]])).item(), 4)
        1.1269
    """
    labels = np.asarray(labels) if isinstance(labels, (list, tuple)) else labels
    if getattr(labels, "ndim", 0) == 2 and jnp.issubdtype(labels.dtype, jnp.floating):
        logits = _checks.floating("logits", logits, rank=2, axes="[n, classes]")
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        shares = _checks.probabilities("labels", labels, logits.shape).astype(logits.dtype)
        total = jnp.sum(shares, axis=1)  # without it, the loss of rounded labels depends on a shift of all logits
        # A class of probability zero may have a logit of minus infinity.
        return total * jax.nn.logsumexp(logits, axis=1) - jnp.sum(jnp.where(shares > 0, shares * logits, 0), axis=1)
    logits, labels = _arguments(logits, labels, classes=1)
    return jax.nn.logsumexp(logits, axis=1) - _picked(logits, labels)


def margin(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """The best wrong logit minus the right one: positive where the prediction is wrong, negative where it is right.

    It is zero where the two tie, as 16-bit or quantized logits often do; the prediction is then the first of the two.

    Args:
        logits: unnormalized log-probabilities, two classes or more.
        labels: the right classes.

    Returns:
        One value per example; float32 or wider.

    Raises:
        TypeError: floating labels or integer logits.
        ValueError: shapes that do not fit, labels outside the classes, or fewer than two classes.

    Example:
        >>> import jax.numpy as jnp
        >>> margin(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0])).tolist()
        [-1.0]

    References:
        Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017.
    """
    logits, labels = _arguments(logits, labels)
    return jnp.max(_others(logits, labels), axis=1) - _picked(logits, labels)


def difference_of_logits_ratio(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """DLR: the margin over the gap between the largest and the third largest logit.

    Unlike the cross-entropy, it does not change when all logits are scaled or shifted, so a model with large logits
    cannot mask its gradients.

    Args:
        logits: unnormalized log-probabilities, three classes or more.
        labels: the right classes.

    Returns:
        One value per example, with the sign of `margin`; float32 or wider.

    Raises:
        TypeError: floating labels or integer logits.
        ValueError: shapes that do not fit, labels outside the classes, or fewer than three classes.

    Example:
        >>> import jax.numpy as jnp
        >>> difference_of_logits_ratio(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0])).tolist()
        [-0.5]

    References:
        Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
        Attacks", ICML 2020, equation 6.
    """
    logits, labels = _arguments(logits, labels, classes=3)
    first, third = _largest(logits, (1, 3))
    return margin(logits, labels) / (first - third + 1e-12)


def targeted_difference_of_logits_ratio(
    logits: Float[Array, "n classes"], labels: Int[Array, " n"], targets: Int[Array, " n"]
) -> Float[Array, " n"]:
    """The targeted difference of logits ratio, to ascend: target minus label, over the spread of the logits.

    Args:
        logits: four classes or more.
        labels: the right classes.
        targets: the classes to reach.

    Returns:
        One value per example, positive where the target's logit exceeds the label's; float32 or wider.

    Raises:
        TypeError: floating labels or integer logits.
        ValueError: shapes that do not fit, labels outside the classes, or fewer than four classes.

    Example:
        >>> import jax.numpy as jnp
        >>> logits = jnp.array([[4.0, 2.0, 1.0, 1.0]])
        >>> round(targeted_difference_of_logits_ratio(logits, jnp.array([0]), jnp.array([1])).item(), 4)
        -0.6667

    References:
        Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
        Attacks", ICML 2020, equation 7.
    """
    logits, labels = _arguments(logits, labels, classes=4)
    targets = _checks.class_indices("targets", targets, logits.shape[0], classes=logits.shape[1])
    gap = _picked(logits, targets) - _picked(logits, labels)
    first, third, fourth = _largest(logits, (1, 3, 4))
    return gap / (first - (third + fourth) / 2 + 1e-12)
