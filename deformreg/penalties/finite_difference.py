"""The penalty, differentiated by a finite difference along each example's own gradient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import scaled
from deformreg._families import check_layout, family_or_flow
from deformreg.penalties._closed import closed, differentiable, of_floating
from deformreg.penalties.exact import LossFn, Size, checked_loss, image_gradients, sizes_of, squared_norm
from deformreg.perturbations import Perturbation, pull_back


def finite_difference_penalty(
    loss_fn: LossFn,
    images: Float[Array, "n *space c"],
    perturbation: Perturbation | None = None,
    *,
    step_size: float = 0.01,
    size: Size = squared_norm,
    has_aux: bool = False,
) -> tuple[Float[Array, " n"], Any]:
    """The penalty, with a derivative by finite differences: the memory of one pass, without double backpropagation.

    The value is the exact ``size(g)``, where ``g`` is the gradient with respect to the parameters. Let ``dT`` be the
    derivative of the family at the identity, ``s`` the gradient of `size` at ``g``, ``v = s / |s|`` held constant, and
    ``D = (loss(images + h dT v) - loss(images)) / h``. The derivative returned is ``|s| dD``, which differs from
    ``d size(g)`` by O(h); for the squared norm, ``|s|`` is ``2 |g|``. It takes two ordinary forward and backward
    passes, one after the other. The images move by ``h dT v``, along the family's tangent, and are not warped, because
    a warp has a kink at the identity. Forward-mode differentiation is not supported.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called once. It may close over the arrays to differentiate.
        images: any range.
        perturbation: the family; None means ``flow()``.
        step_size: h, the Euclidean norm of an example's step, in the unit of the parameters. Rounding errors add about
            1e-7 / h to the derivative's relative error, so h must not be too small.
        size: as in `gradient_penalty`.
        has_aux: whether `loss_fn` returns ``(losses, aux)``; `aux` belongs to the unperturbed images.

    Returns:
        ``(penalties[n], losses[n])``, or with `has_aux` ``(penalties, (losses, aux))``.

    Raises:
        TypeError: as `gradient_penalty`.
        ValueError: as `gradient_penalty`, or a `step_size` not above 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1)
        >>> def penalty(slope):
        ...     return finite_difference_penalty(lambda x: slope * x.sum((1, 2, 3)), ramp, step_size=0.5)[0].sum()
        >>> value, derivative = jax.value_and_grad(penalty)(1.0)  # 3 slope^2
        >>> value.round(4).item(), derivative.round(4).item()
        (3.0, 6.0)

    References:
        Finlay and Oberman 2019, section 3.2 (they square the difference itself).
    """
    _checks.positive("step_size", step_size)
    perturbation, images = family_or_flow(perturbation), _checks.images(images)
    check_layout(perturbation, images.shape)
    hold = jax.lax.stop_gradient
    function, constants, images = closed(checked_loss(loss_fn, has_aux), images)
    gradients, result = image_gradients(lambda x: function(x, hold(constants)), hold(images), has_aux=has_aux)
    gradients = hold(gradients)
    pulled, push_forward = jax.vjp(lambda leaf: pull_back(perturbation, leaf, images), gradients)
    sizes, ascend = jax.vjp(lambda leaves: sizes_of(size, leaves, len(images)), pulled)
    (steepest,) = ascend(jnp.ones_like(sizes))
    squared = squared_norm(steepest)
    # A zero gradient has no direction, and any finite one will do: take zero, not 0 / 0.
    scale = jnp.where(squared > 0, step_size * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)
    # The pullback's transpose is the family's tangent map. Differentiating the warp forward instead compiles to
    # gathers, which on TPUs moved three times as many bytes as the exact penalty.
    (along,) = push_forward(hold(scaled(steepest, scale)))
    slopes = hold(jnp.sqrt(squared) / step_size)
    penalties, result = _with_difference(function, (hold(sizes), result), slopes, images, images + along, constants)
    return penalties, result


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_difference(
    loss_fn: LossFn, known: Any, slopes: Array, images: Array, moved: Array, constants: Sequence[Any]
) -> Any:
    """Returns `known`: the penalties, whose derivative is ``slopes * d(loss(moved) - loss)``, and the loss's result."""
    return known


def _with_difference_forward(loss_fn: LossFn, known: Any, *arguments: Any) -> tuple[Any, Any]:
    return known, arguments


def _with_difference_backward(loss_fn: LossFn, arguments: Any, cotangents: Any) -> tuple[Any, ...]:
    slopes, images, moved, constants = arguments
    penalties_bar, result_bar = cotangents
    losses_bar, *aux_bar = differentiable(result_bar)
    difference = (slopes * penalties_bar).astype(losses_bar.dtype)
    bars = [losses_bar - difference, *aux_bar], [difference, *map(jnp.zeros_like, aux_bar)]
    evaluate, leaves, restore = of_floating(loss_fn, constants)

    def one_pass(sums: Any, inputs_and_bar: Any) -> tuple[Any, Array]:
        inputs, bar = inputs_and_bar
        inputs_bar, *leaves_bar = jax.vjp(evaluate, inputs, *leaves)[1](bar)
        return jax.tree.map(jnp.add, sums, leaves_bar), inputs_bar

    # A loop, so that XLA cannot overlap the two passes and they need the memory of one. In a plain difference of two
    # losses, the values of both forward passes are kept until the backward passes, which takes the memory of the exact
    # penalty.
    passes = jax.tree.map(lambda *pair: jnp.stack(pair), (images, bars[0]), (moved, bars[1]))
    found, (images_bar, moved_bar) = jax.lax.scan(one_pass, [jnp.zeros_like(leaf) for leaf in leaves], passes)
    return None, None, images_bar, moved_bar, restore(found)


_with_difference.defvjp(_with_difference_forward, _with_difference_backward)
