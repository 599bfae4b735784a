"""Local linearity from forward passes: the error of linear interpolation between random points of a ball."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import scaled, wide
from deformreg._families import check_layout, family_or_flow, identity
from deformreg.attacks.search import check_ball, sample_rows
from deformreg.balls import Ball
from deformreg.penalties.exact import LossFn, checked_loss
from deformreg.perturbations import Perturbation


def local_linearity_penalty(
    loss_fn: LossFn,
    images: Float[Array, "n *space c"],
    perturbation: Perturbation | None = None,
    *,
    ball: Ball,
    key: Array,
    has_aux: bool = False,
) -> tuple[Float[Array, " n"], Any]:
    """The squared error of linear interpolation of the loss between two random points of a ball (ELLE).

    The points ``a`` and ``b`` are parameters drawn from the ball, and ``c = (1 - t) a + t b`` with ``t`` uniform in
    [0, 1]. The penalty is ``(loss(c) - (1 - t) loss(a) - t loss(b))^2``. It is zero for a loss that is linear in the
    parameters, and ``(t (1 - t) / 2 d^T A d)^2`` with ``d = b - a`` for a quadratic one with Hessian ``A``.

    It takes three forward passes beside that of the clean losses, and no double backpropagation: a training step costs
    12 forward passes, or 3 for the loss and 9 for the penalty.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called four times.
        images: any range.
        perturbation: the family; None means ``flow()``.
        ball: where the points lie; one radius for all examples.
        key: a JAX random key, or n of them, one per example.
        has_aux: whether `loss_fn` returns ``(losses, aux)``; `aux` belongs to the unperturbed images.

    Returns:
        ``(penalties[n], losses[n])``, or with `has_aux` ``(penalties, (losses, aux))``. The penalties are float32 or
        wider, the losses those of `loss_fn`.

    Raises:
        TypeError: as `gradient_penalty`, or a `ball` or `key` that is none.
        ValueError: as `gradient_penalty`, or a ball with one radius per example.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import additive, linf
        >>> images, ball, key = jnp.ones((1, 2, 2, 1)), linf(0.5), jax.random.key(0)
        >>> linear, _ = local_linearity_penalty(lambda x: x.sum((1, 2, 3)), images, additive(), ball=ball, key=key)
        >>> curved, _ = local_linearity_penalty(lambda x: (x**2).sum((1, 2, 3)), images, additive(), ball=ball, key=key)
        >>> bool(linear[0] < 1e-9 < curved[0])
        True

    References:
        Abad Rocamora et al., "Efficient Local Linearity Regularization to Overcome Catastrophic Overfitting", ICLR
        2024.
    """
    perturbation, images = family_or_flow(perturbation), _checks.images(images)
    check_layout(perturbation, images.shape)
    _checks.function("loss_fn", loss_fn)
    check_ball(ball, per_example=False)
    checked = checked_loss(loss_fn, has_aux)
    first_keys, second_keys, share_keys = keys_of_examples(key, len(images), 3)
    zeros = identity(perturbation, images)

    def draw(keys: Array) -> Any:
        # Valid images are a convex set, so the points between two valid ones are valid, too.
        return perturbation.constrain(sample_rows(ball.sample, keys, zeros), images)

    def losses_at(params: Any) -> Array:
        result = checked(perturbation.apply(params, images))
        return wide(result[0] if has_aux else result)

    first, second = draw(first_keys), draw(second_keys)
    result = checked(images)
    shares = jax.vmap(jax.random.uniform)(share_keys).astype(wide(result[0] if has_aux else result).dtype)
    between = jax.tree.map(jnp.add, scaled(first, 1 - shares), scaled(second, shares))
    interpolated = (1 - shares) * losses_at(first) + shares * losses_at(second)
    return (losses_at(between) - interpolated) ** 2, result


def keys_of_examples(key: Array, count: int, draws: int) -> Array:
    """Random keys ``[draws, count]``, from one key or from one per example."""
    key = _checks.key(key, count=count)
    is_one = not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.ndim == 0
    keys = jax.random.split(key, count) if is_one else key
    return jnp.moveaxis(jax.vmap(lambda each: jax.random.split(each, draws))(keys), 1, 0)
