"""Gradient penalties: the squared gradient of each example's loss with respect to a perturbation, at the identity.

One vjp through the model gives the losses and the image gradient; a family's pullback turns the image gradient into the
gradient with respect to its parameters. `jax.grad` differentiates the penalty. A training loss is::

    def objective(params):
        loss_fn = lambda images: cross_entropy(model(params, images), labels)
        penalties, losses = gradient_penalty(loss_fn, images)
        return jnp.mean(losses) + weight * jnp.mean(penalties)

Three rules compute the penalty. They give the same value, but their derivatives cost differently. A training step with
each rule costs, in forward passes (a plain training step costs 3):

- `gradient_penalty` takes 6: double backpropagation, exact. It stores the values that the inner backward pass computes,
  so it takes about twice the memory of a plain step.
- `forward_over_reverse_penalty` takes 8: exact. It takes about twice the memory of a plain step, and less with
  `jax.checkpoint`, whose savings it preserves.
- `finite_difference_penalty` takes 8: approximate. It takes little more memory than a plain step.

References:
    Xia and Li, "Improving Resistance to Adversarial Deformations by Regularizing Gradients", Neurocomputing 455,
    2021 (flow gradient regularization, random start, and one formula for pixel and flow perturbations).
    Ross and Doshi-Velez, "Improving the Adversarial Robustness and Interpretability of Deep Neural Networks by
    Regularizing Their Input Gradients", AAAI 2018.
    Finlay and Oberman, "Scaleable Input Gradient Regularization for Adversarial Robustness", 2019 (the finite
    difference, for input gradients only).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jax_core
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import scaled
from deformreg._families import check_layout, family_or_flow
from deformreg.perturbations import Perturbation, pull_back

LossFn = Callable[..., Any]
"""``images -> losses[n]``, or with ``has_aux``: ``images -> (losses[n], aux)``; one loss per example, unreduced."""


def image_gradients(
    loss_fn: LossFn, images: Float[Array, "n *space c"], *, has_aux: bool = False
) -> tuple[Float[Array, "n *space c"], Any]:
    """The gradient of every example's loss with respect to its image, and the losses.

    It takes one forward pass and one backward pass to the images.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced. If examples interact (batch normalization with batch statistics),
            the result is the gradient of the *sum* of all losses with respect to each image.
        images: any range.
        has_aux: whether `loss_fn` returns ``(losses, aux)``.

    Returns:
        ``(gradients, losses)``, or with `has_aux` ``(gradients, (losses, aux))``.

    Raises:
        TypeError: integer images, or a `loss_fn` that returns integers.
        ValueError: images of another shape, or a `loss_fn` that does not return one loss per example.

    Example:
        >>> import jax.numpy as jnp
        >>> gradients, losses = image_gradients(lambda x: (x**2).sum((1, 2, 3)), jnp.ones((1, 1, 2, 1)))
        >>> gradients.ravel().tolist(), losses.tolist()
        ([2.0, 2.0], [2.0])
    """
    images = _checks.images(images)
    _checks.function("loss_fn", loss_fn)
    checked = _checked(loss_fn, has_aux)
    if has_aux:
        losses, vjp, aux = jax.vjp(checked, images, has_aux=True)
        result = losses, aux
    else:
        losses, vjp = jax.vjp(checked, images)
        result = losses
    (gradients,) = vjp(jnp.ones_like(losses))
    return gradients, result


def _checked(loss_fn: LossFn, has_aux: bool) -> LossFn:
    """Wraps `loss_fn` in checks of its result, so that a reduced loss fails with a clear message."""

    def checked(images: Array) -> Any:
        result = loss_fn(images)
        if has_aux and not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(f"loss_fn must return (losses, aux) with has_aux=True, got {type(result).__name__}")
        losses = result[0] if has_aux else result
        if isinstance(losses, tuple):
            raise TypeError("loss_fn returned a tuple: pass has_aux=True, or return the losses alone")
        losses = _checks.floating("loss_fn's result", _checks.per_example(losses, images.shape[0]))
        return (losses, result[1]) if has_aux else losses

    return checked


def squared_norm(gradients: Any) -> Float[Array, " n"]:
    """The squared Euclidean norm of each example's gradient, summed over the leaves of a pytree.

    Args:
        gradients: a pytree of arrays whose first axis is the example.

    Returns:
        One number per example, float32 or wider.

    Example:
        >>> import jax.numpy as jnp
        >>> squared_norm(jnp.array([[3.0, 4.0]])).tolist()
        [25.0]
    """
    squares = [
        jnp.sum(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) ** 2, axis=tuple(range(1, leaf.ndim)))
        for leaf in jax.tree.leaves(gradients)
    ]
    return sum(squares[1:], squares[0])


def gradient_penalty(
    loss_fn: LossFn,
    images: Float[Array, "n *space c"],
    perturbation: Perturbation | None = None,
    *,
    has_aux: bool = False,
) -> tuple[Float[Array, " n"], Any]:
    """The exact penalty: ``|d loss_i / d params_i|^2`` at the identity, per example.

    One forward pass and one backward pass to the images give both the penalties and the clean losses. To train, add the
    weighted mean of the penalties to the mean loss. If `loss_fn` does not use batch statistics, an example's penalty
    does not depend on the batch size or on how a batch is split over devices.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called once.
        images: any range.
        perturbation: the family; None means ``flow()``, as in the paper. The unit of the penalty is then that of the
            squared loss, per squared pixel of displacement.
        has_aux: whether `loss_fn` returns ``(losses, aux)``, for logits or batch statistics.

    Returns:
        ``(penalties[n], losses[n])``, or with `has_aux` ``(penalties, (losses, aux))``.

    Raises:
        TypeError: integer images, or a `loss_fn` that returns something other than floating losses.
        ValueError: images of another shape, or a `loss_fn` that does not return one loss per example.

    Example:
        >>> import jax.numpy as jnp
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1)
        >>> penalties, losses = gradient_penalty(lambda images: images.sum((1, 2, 3)), ramp)
        >>> penalties.tolist(), losses.tolist()  # three pixels of slope 1, the last of slope 0
        ([3.0], [6.0])

    References:
        Xia and Li 2021, section 3 (with ``flow()``); Ross and Doshi-Velez 2018 (with ``additive()``).
    """
    perturbation, images = family_or_flow(perturbation), _checks.images(images)
    check_layout(perturbation, images.shape)
    gradients, losses = image_gradients(loss_fn, images, has_aux=has_aux)
    return squared_norm(pull_back(perturbation, gradients, images)), losses


def finite_difference_penalty(
    loss_fn: LossFn,
    images: Float[Array, "n *space c"],
    perturbation: Perturbation | None = None,
    *,
    step_size: float = 0.01,
    has_aux: bool = False,
) -> tuple[Float[Array, " n"], Any]:
    """The penalty, with a derivative by finite differences: the memory of one pass, without double backpropagation.

    The value is the exact ``|g|^2``, where ``g`` is the gradient with respect to the parameters. Let ``dT`` be the
    derivative of the family at the identity, ``v = g / |g|`` held constant, and
    ``D = (loss(images + h dT v) - loss(images)) / h``. The derivative returned is ``2 |g| dD``, which differs from
    ``d |g|^2`` by O(h). It takes two ordinary forward and backward passes, one after the other. The images move by
    ``h dT v``, along the family's tangent, and are not warped, because a warp has a kink at the identity. Forward-mode
    differentiation is not supported.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called once. It may close over the arrays to differentiate.
        images: any range.
        perturbation: the family; None means ``flow()``.
        step_size: h, the Euclidean norm of an example's step, in the unit of the parameters. Rounding errors add about
            1e-7 / h to the derivative's relative error, so h must not be too small.
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
    function, constants = _closed(_checked(loss_fn, has_aux), images)
    gradients, result = image_gradients(lambda x: function(x, hold(constants)), hold(images), has_aux=has_aux)
    gradients = hold(gradients)
    pulled, push_forward = jax.vjp(lambda leaf: pull_back(perturbation, leaf, images), gradients)
    squared = squared_norm(pulled)
    # A zero gradient has no direction, and any finite one will do: take zero, not 0 / 0.
    scale = jnp.where(squared > 0, step_size * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)
    # The pullback's transpose is the family's tangent map. Differentiating the warp forward instead compiles to
    # gathers, which on TPUs moved three times as many bytes as the exact penalty.
    (along,) = push_forward(hold(scaled(pulled, scale)))
    slopes = hold(2 * jnp.sqrt(squared) / step_size)
    penalties, result = _with_difference(function, (hold(squared), result), slopes, images, images + along, constants)
    return penalties, result


def _closed(function: Callable[[Array], Any], images: Array) -> tuple[Callable[..., Any], list[Any]]:
    """Returns `function` as ``(images, constants) -> result``, and the arrays it closed over: the constants."""
    traced, shape = jax.make_jaxpr(function, return_shape=True)(images)

    def apply(images: Array, constants: Sequence[Any]) -> Any:
        leaves = jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(traced.jaxpr, constants))(images)
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return apply, traced.consts


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
    losses_bar, *aux_bar = _differentiable(result_bar)
    difference = (slopes * penalties_bar).astype(losses_bar.dtype)
    bars = [losses_bar - difference, *aux_bar], [difference, *map(jnp.zeros_like, aux_bar)]
    evaluate, leaves, restore = _of_floating(loss_fn, constants)

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


def forward_over_reverse_penalty(
    loss_fn: LossFn,
    images: Float[Array, "n *space c"],
    perturbation: Perturbation | None = None,
    *,
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
    function, constants = _closed(_checked(loss_fn, has_aux), images)
    gradients, result = _gradients_along_tangent(function, has_aux, images, constants)
    return squared_norm(pull_back(perturbation, gradients, images)), result


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
    losses_bar, *aux_bar = _differentiable(result_bar)
    evaluate, leaves, restore = _of_floating(loss_fn, constants)
    of_sum = [jnp.ones_like(losses_bar), *map(jnp.zeros_like, aux_bar)]
    _, (images_bar, *found) = jax.jvp(
        lambda inputs, bar: jax.vjp(evaluate, inputs, *leaves)[1](bar),
        (images, of_sum),
        (direction, [losses_bar, *aux_bar]),
    )
    return images_bar, restore(found)


_gradients_along_tangent.defvjp(_gradients_along_tangent_forward, _gradients_along_tangent_backward)


def _of_floating(
    loss_fn: LossFn, constants: Sequence[Any]
) -> tuple[Callable[..., list[Array]], list[Array], Callable[[Sequence[Array]], list[Any]]]:
    """Returns `loss_fn` as a function of images and its floating constants, these constants, and a function that puts
    their cotangents back among those of all constants."""
    floating = [index for index, leaf in enumerate(constants) if _has_derivative(leaf)]

    def evaluate(images: Array, *leaves: Array) -> list[Array]:
        replaced = dict(zip(floating, leaves, strict=True))
        return _differentiable(loss_fn(images, [replaced.get(index, leaf) for index, leaf in enumerate(constants)]))

    def restore(cotangents: Sequence[Array]) -> list[Any]:
        found = dict(zip(floating, cotangents, strict=True))
        return [found.get(index) for index in range(len(constants))]

    return evaluate, [constants[index] for index in floating], restore


def _differentiable(result: Any) -> list[Array]:
    """The floating leaves of a loss function's result; the losses come first."""
    return [leaf for leaf in jax.tree.leaves(result) if _has_derivative(leaf)]


def _has_derivative(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))
