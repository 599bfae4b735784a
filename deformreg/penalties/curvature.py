"""Curvature along the strongest first-order attack, by a difference of gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._families import check_layout, family_or_flow
from deformreg.balls import Ball
from deformreg.penalties.exact import LossFn, image_gradients, squared_norm
from deformreg.perturbations import Perturbation, pull_back


def curvature_penalty(
    loss_fn: LossFn,
    images: Float[Array, "n *space c"],
    perturbation: Perturbation | None = None,
    *,
    ball: Ball,
    has_aux: bool = False,
) -> tuple[Float[Array, " n"], Any]:
    """The squared change of the gradient along the strongest first-order attack in a ball (CURE).

    Let ``g`` be the gradient with respect to the parameters, ``dT`` the derivative of the family at the identity, and
    ``z`` the point of the ball with the largest ``g . z``, held constant. The penalty is ``|g(images + dT z) - g|^2``.
    It is zero for a linear loss and ``|A z|^2`` for a quadratic one, where ``A`` is its Hessian with respect to the
    parameters. The images move along the family's tangent and are not warped, because a warp has a kink at the
    identity, which no training could remove.

    A training step costs 12 forward passes: double backpropagation at two images.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called twice.
        images: any range.
        perturbation: the family; None means ``flow()``.
        ball: its radius is the length of the step. The authors step along the sign of the gradient, scaled to the
            Euclidean length h: ``linf(h / sqrt(number of parameters))``.
        has_aux: whether `loss_fn` returns ``(losses, aux)``; `aux` belongs to the unperturbed images.

    Returns:
        ``(penalties[n], losses[n])``, or with `has_aux` ``(penalties, (losses, aux))``.

    Raises:
        TypeError: as `gradient_penalty`, or a `ball` that is none.
        ValueError: as `gradient_penalty`.

    Example:
        >>> import jax.numpy as jnp
        >>> from deformreg import additive, linf
        >>> images = jnp.ones((1, 1, 2, 1))
        >>> curvature_penalty(lambda x: (x**2).sum((1, 2, 3)), images, additive(), ball=linf(0.5))[0].tolist()
        [2.0]

    References:
        Moosavi-Dezfooli et al., "Robustness via Curvature Regularization, and Vice Versa", CVPR 2019.
    """
    perturbation, images = family_or_flow(perturbation), _checks.images(images)
    check_layout(perturbation, images.shape)
    ball = _checks.instance("ball", ball, Ball, "deformreg.linf(0.5)")
    gradients, result = image_gradients(loss_fn, images, has_aux=has_aux)
    known = jax.lax.stop_gradient(gradients)
    pulled, push_forward = jax.vjp(lambda leaf: pull_back(perturbation, leaf, images), known)
    strongest = jax.grad(lambda leaves: jnp.sum(ball.support(leaves)))(pulled)
    (along,) = push_forward(strongest)
    ahead, _ = image_gradients(loss_fn, images + jax.lax.stop_gradient(along), has_aux=has_aux)
    return squared_norm(pull_back(perturbation, ahead - gradients, images)), result
