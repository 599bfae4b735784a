"""The error of the loss's linearization at the worst point of a ball."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import absolute, inner, wide
from deformreg._families import check_layout, family_or_flow, identity
from deformreg.attacks.ascent import projected_ascent
from deformreg.attacks.search import check_ball, sample_rows
from deformreg.balls import Ball, Radius
from deformreg.penalties._closed import closed
from deformreg.penalties.exact import LossFn, checked_loss, image_gradients
from deformreg.penalties.local_linearity import keys_of_examples
from deformreg.perturbations import Params, Perturbation, pull_back


def linearization_penalty(
    loss_fn: LossFn,
    images: Float[Array, "n *space c"],
    perturbation: Perturbation | None = None,
    *,
    ball: Ball,
    key: Array,
    num_steps: int = 10,
    step_size: Radius | None = None,
    slope_weight: float = 0.3,
    has_aux: bool = False,
) -> tuple[Float[Array, " n"], Any]:
    """The error of the loss's linearization at the worst point of a ball, plus its slope there (LLR).

    Let ``g`` be the gradient with respect to the parameters at the identity and
    ``error(p) = |loss(p) - loss(0) - g . p|``. Projected ascent from a random point of the ball finds a ``p`` of large
    error, which is held constant. The penalty is ``error(p) + slope_weight |g . p|``. For a linear loss the error is
    zero; for a quadratic one with Hessian ``A`` it is ``|p^T A p| / 2``. At any point of the ball the loss is at most
    ``loss(0) + |g . p| + error(p)``.

    A training step costs ``9 + 2 num_steps`` forward passes: double backpropagation at the images, one pass at the
    worst point, and a forward and a backward pass per step of the search.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called once. It may close over the arrays to differentiate.
        images: any range.
        perturbation: the family; None means ``flow()``.
        ball: where the worst point is sought; one radius for all examples.
        key: a JAX random key, or n of them, one per example.
        num_steps: of the search, at least 0.
        step_size: of the search, in the ball's norm; None is ``2.5 * radius / num_steps``.
        slope_weight: of the slope at the worst point, at least 0.
        has_aux: whether `loss_fn` returns ``(losses, aux)``; `aux` belongs to the unperturbed images.

    Returns:
        ``(penalties[n], losses[n])``, or with `has_aux` ``(penalties, (losses, aux))``. The penalties are float32 or
        wider, the losses those of `loss_fn`.

    Raises:
        TypeError: as `gradient_penalty`, or a `ball`, `key` or `num_steps` that is none.
        ValueError: as `gradient_penalty`, a ball with one radius per example, or a negative number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import additive, linf
        >>> loss_fn = lambda x: (x**2).sum((1, 2, 3))
        >>> options = {"ball": linf(0.5), "key": jax.random.key(0), "slope_weight": 0.0}
        >>> penalties, _ = linearization_penalty(loss_fn, jnp.ones((1, 1, 2, 1)), additive(), **options)
        >>> penalties.round(4).tolist()  # 0.25 for each of the two pixels
        [0.5]

    References:
        Qin et al., "Adversarial Robustness through Local Linearization", NeurIPS 2019 (Adam instead of steps along the
        steepest direction; 4 as the weight of the penalty).
    """
    perturbation, images = family_or_flow(perturbation), _checks.images(images)
    check_layout(perturbation, images.shape)
    _checks.function("loss_fn", loss_fn)
    check_ball(ball, per_example=False)
    num_steps = _checks.count("num_steps", num_steps, minimum=0)
    _checks.non_negative("slope_weight", slope_weight)
    step_size = 2.5 * ball.radius / max(num_steps, 1) if step_size is None else step_size
    hold = jax.lax.stop_gradient
    function, constants, images = closed(checked_loss(loss_fn, has_aux), images)
    gradients, result = image_gradients(lambda inputs: function(inputs, constants), images, has_aux=has_aux)
    known = wide(result[0] if has_aux else result), pull_back(perturbation, gradients, images), constants

    def error(params: Params, losses: Array, slopes: Params, constants: Any) -> Array:
        found = function(perturbation.apply(params, images).astype(images.dtype), constants)
        return absolute(wide(found[0] if has_aux else found) - losses - inner(params, slopes).astype(losses.dtype))

    def constrain(params: Params) -> Params:
        return perturbation.constrain(params, images)

    (keys,) = keys_of_examples(key, len(images), 1)
    worst = projected_ascent(
        # With constants that are not differentiated, or the gradient of the whole search would be computed.
        lambda params: error(params, *hold(known)),
        constrain(sample_rows(ball.sample, keys, identity(perturbation, images))),
        ball=ball,
        step_size=step_size,
        num_steps=num_steps,
        constrain=constrain,
    )
    params = hold(worst.params)
    losses, slopes, _ = known
    return error(params, *known) + slope_weight * absolute(inner(params, slopes)).astype(losses.dtype), result
