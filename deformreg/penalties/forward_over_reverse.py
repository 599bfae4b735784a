"""The exact penalty, by forward-over-reverse differentiation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._families import check_layout, family_or_flow
from deformreg.penalties._closed import closed, differentiable, of_floating
from deformreg.penalties.exact import LossFn, Size, checked_loss, image_gradients, sizes_of, squared_norm
from deformreg.perturbations import Perturbation, pull_back


def forward_over_reverse_penalty(
    loss_fn: LossFn,
    images: Float[Array, "n *space c"],
    perturbation: Perturbation | None = None,
    *,
    size: Size = squared_norm,
    has_aux: bool = False,
) -> tuple[Float[Array, " n"], Any]:
    """The exact penalty, differentiated by forward-over-reverse differentiation: for models with `jax.checkpoint`.

    Double backpropagation stores the values that the inner backward pass computes, even those that `jax.checkpoint`
    recomputes. This rule instead differentiates the ordinary backward pass along a direction. It takes twice the memory
    of an ordinary step and preserves the savings of `jax.checkpoint`. A training step costs 8 forward passes; with
    `gradient_penalty` it costs 6. Forward-mode differentiation of the result is not supported.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called once. It may close over the arrays to differentiate.
        images: any range.
        perturbation: the family; None means ``flow()``.
        size: as in `gradient_penalty`.
        has_aux: whether `loss_fn` returns ``(losses, aux)``.

    Returns:
        ``(penalties[n], losses[n])``, or with `has_aux` ``(penalties, (losses, aux))``.

    Raises:
        TypeError: as `gradient_penalty`.
        ValueError: as `gradient_penalty`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1)
        >>> def penalty(slope):
        ...     return forward_over_reverse_penalty(lambda x: slope * x.sum((1, 2, 3)), ramp)[0].sum()
        >>> jax.grad(penalty)(1.0).item()  # the penalty is 3 slope^2
        6.0

    References:
        Pearlmutter, "Fast Exact Multiplication by the Hessian", Neural Computation 6, 1994.
    """
    perturbation, images = family_or_flow(perturbation), _checks.images(images)
    check_layout(perturbation, images.shape)
    function, constants, images = closed(checked_loss(loss_fn, has_aux), images)
    gradients, result = _gradients_along_tangent(function, has_aux, images, constants)
    return sizes_of(size, pull_back(perturbation, gradients, images), len(images)), result


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients_along_tangent(loss_fn: LossFn, has_aux: bool, images: Array, constants: Sequence[Any]) -> Any:
    """`image_gradients`, with a derivative by forward-over-reverse differentiation."""
    return image_gradients(lambda inputs: loss_fn(inputs, constants), images, has_aux=has_aux)


def _gradients_along_tangent_forward(
    loss_fn: LossFn, has_aux: bool, images: Array, constants: Sequence[Any]
) -> tuple[Any, Any]:
    return _gradients_along_tangent(loss_fn, has_aux, images, constants), (images, constants)


def _gradients_along_tangent_backward(
    loss_fn: LossFn, has_aux: bool, arguments: Any, cotangents: Any
) -> tuple[Any, ...]:
    # The cotangent c of the gradients g contributes d(c . g): the gradient of the summed losses, differentiated as the
    # images move along c. The result's own cotangents enter a vjp linearly, so they can be passed as the tangent of
    # its argument: one jvp of one vjp computes both contributions.
    images, constants = arguments
    direction, result_bar = cotangents
    losses_bar, *aux_bar = differentiable(result_bar)
    evaluate, leaves, restore = of_floating(loss_fn, constants)
    of_sum = [jnp.ones_like(losses_bar), *map(jnp.zeros_like, aux_bar)]
    _, (images_bar, *found) = jax.jvp(
        lambda inputs, bar: jax.vjp(evaluate, inputs, *leaves)[1](bar),
        (images, of_sum),
        (direction, [losses_bar, *aux_bar]),
    )
    return images_bar, restore(found)


_gradients_along_tangent.defvjp(_gradients_along_tangent_forward, _gradients_along_tangent_backward)
