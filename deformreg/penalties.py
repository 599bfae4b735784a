"""Gradient penalties: the squared gradient of each example's loss with respect to a perturbation, at the identity.

One vjp through the model gives the losses and the image gradient; a family's pullback turns the image gradient into the
gradient with respect to its parameters. `jax.grad` differentiates the penalty. A training loss is::

    def objective(params):
        loss_fn = lambda images: cross_entropy(model(params, images), labels)
        penalties, losses = gradient_penalty(loss_fn, images)
        return jnp.mean(losses) + weight * jnp.mean(penalties)

Three rules compute the penalty; their values are equal, the costs of their derivatives differ. In units of a forward
pass, of which a plain training step takes 3:

- `gradient_penalty` takes 6: double backpropagation, exact. It keeps what the inner backward pass computes.
- `forward_over_reverse_penalty` takes 8: exact. It takes about twice the memory of a plain step, also for a
  rematerialized model.
- `finite_difference_penalty` takes 8: approximate. It takes little more memory than a plain step.

References:
    Xia and Li, "Improving Resistance to Adversarial Deformations by Regularizing Gradients", Neurocomputing 455,
    2021 (flow gradient regularization, random start, the form for both kinds of perturbation).
    Ross and Doshi-Velez, "Improving the Adversarial Robustness and Interpretability of Deep Neural Networks by
    Regularizing Their Input Gradients", AAAI 2018.
    Finlay and Oberman, "Scaleable Input Gradient Regularization for Adversarial Robustness", 2019 (the finite
    difference, there for input gradients).
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
"""``images -> losses[n]``, or with ``has_aux`` ``images -> (losses[n], aux)``; unreduced."""


def image_gradients(
    loss_fn: LossFn, images: Float[Array, "n h w c"], *, has_aux: bool = False
) -> tuple[Float[Array, "n h w c"], Any]:
    """The gradient of every example's loss with respect to its image, and the losses, from one pass.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced. Where examples interact (batch normalization with batch
            statistics), an image's gradient is that of the *sum* of the losses.
        images: any range.
        has_aux: whether `loss_fn` returns ``(losses, aux)``.

    Returns:
        ``(gradients, losses)``, or with `has_aux` ``(gradients, (losses, aux))``.

    Raises:
        TypeError: integer images, or a `loss_fn` that returns integers.
        ValueError: images not of rank 4, or a `loss_fn` that does not return one loss per example.

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
    """`loss_fn` with checks on its result, so that a reduced loss fails with a clear message."""

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
    images: Float[Array, "n h w c"],
    perturbation: Perturbation | None = None,
    *,
    has_aux: bool = False,
) -> tuple[Float[Array, " n"], Any]:
    """The exact penalty: ``|d loss_i / d params_i|^2`` at the identity, per example.

    It takes one forward pass and one backward pass to the images and also returns the clean losses. To train, add the
    weighted mean of the penalties to the mean loss. Unless `loss_fn` uses batch statistics, the mean does not depend on
    the batch size or on how a batch is split over devices.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called once.
        images: any range.
        perturbation: the family; None is ``flow()``, the paper's, with a penalty in squared losses per squared pixel
            of displacement.
        has_aux: whether `loss_fn` returns ``(losses, aux)``, for logits or batch statistics.

    Returns:
        ``(penalties[n], losses[n])``, or with `has_aux` ``(penalties, (losses, aux))``.

    Raises:
        TypeError: integer images, or a `loss_fn` that returns something other than floating losses.
        ValueError: images not of rank 4, or a `loss_fn` that does not return one loss per example.

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
    images: Float[Array, "n h w c"],
    perturbation: Perturbation | None = None,
    *,
    step_size: float = 0.01,
    has_aux: bool = False,
) -> tuple[Float[Array, " n"], Any]:
    """The penalty with a derivative by finite differences: no double backpropagation, the memory of one pass.

    The value is the exact ``|g|^2``. With ``v = g / |g|`` held constant, ``dT`` the derivative of the family at the
    identity and ``D = (loss(images + h dT v) - loss(images)) / h``, the derivative is ``2 |g| dD``, which differs from
    ``d |g|^2`` by O(h). Two ordinary passes compute it, one after the other. The images move along the family's tangent
    instead of through the family, because a warp has a kink at the identity. Forward-mode differentiation is not
    supported.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called once. It may close over what is differentiated.
        images: any range.
        perturbation: the family; None is ``flow()``.
        step_size: h, in the unit of the parameters, as their Euclidean norm over an example. Rounding adds an error of
            about 1e-7 of the derivative over h, so h must not be too small.
        has_aux: whether `loss_fn` returns ``(losses, aux)``; `aux` is that of the unperturbed images.

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
    # Where the gradient vanishes the direction does not matter, as long as it is finite: take zero.
    scale = jnp.where(squared > 0, step_size * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)
    # The pullback's transpose is the family's tangent. Differentiating the warp instead compiles to gathers, which on
    # TPUs moved three times the exact penalty's bytes.
    (along,) = push_forward(hold(scaled(pulled, scale)))
    slopes = hold(2 * jnp.sqrt(squared) / step_size)
    penalties, result = _with_difference(function, (hold(squared), result), slopes, images, images + along, constants)
    return penalties, result


def _closed(function: Callable[[Array], Any], images: Array) -> tuple[Callable[..., Any], list[Any]]:
    """``(images, constants) -> result`` without closed-over arrays, and the arrays that `function` closes over."""
    traced, shape = jax.make_jaxpr(function, return_shape=True)(images)

    def apply(images: Array, constants: Sequence[Any]) -> Any:
        leaves = jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(traced.jaxpr, constants))(images)
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return apply, traced.consts


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_difference(
    loss_fn: LossFn, known: Any, slopes: Array, images: Array, moved: Array, constants: Sequence[Any]
) -> Any:
    """`known`, the penalties and the loss's result; the penalties' derivative is ``slopes * d(loss(moved) - loss)``."""
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

    # A loop, so that XLA cannot overlap the two passes: they need the memory of one. In a plain difference of two
    # losses both passes are alive when the reverse begins, and the memory is that of the exact penalty.
    passes = jax.tree.map(lambda *pair: jnp.stack(pair), (images, bars[0]), (moved, bars[1]))
    found, (images_bar, moved_bar) = jax.lax.scan(one_pass, [jnp.zeros_like(leaf) for leaf in leaves], passes)
    return None, None, images_bar, moved_bar, restore(found)


_with_difference.defvjp(_with_difference_forward, _with_difference_backward)


def forward_over_reverse_penalty(
    loss_fn: LossFn,
    images: Float[Array, "n h w c"],
    perturbation: Perturbation | None = None,
    *,
    has_aux: bool = False,
) -> tuple[Float[Array, " n"], Any]:
    """The exact penalty with a derivative by forward-over-reverse differentiation: for rematerialized models.

    Double backpropagation keeps what the inner backward pass computes, rematerialized or not. This rule differentiates
    the ordinary backward pass along a direction instead, which takes twice the memory of an ordinary step and keeps the
    savings of `jax.checkpoint`. It takes the work of 8 forward passes where `gradient_penalty` takes 6. Forward-mode
    differentiation of the result is not supported.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called once. It may close over what is differentiated.
        images: any range.
        perturbation: the family; None is ``flow()``.
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
        >>> jax.grad(penalty)(1.0).item()  # of 3 slope^2
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
    # The cotangent c of the gradients g contributes d(c . g), the derivative of the gradient of the summed losses as
    # the images move along c. The result's own cotangents enter a vjp linearly, so that they may be the tangent of its
    # argument: one jvp of one vjp computes both.
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
    """`loss_fn` as a function of images and its floating constants; those; and how to place their cotangents."""
    floating = [index for index, leaf in enumerate(constants) if _has_derivative(leaf)]

    def evaluate(images: Array, *leaves: Array) -> list[Array]:
        replaced = dict(zip(floating, leaves, strict=True))
        return _differentiable(loss_fn(images, [replaced.get(index, leaf) for index, leaf in enumerate(constants)]))

    def restore(cotangents: Sequence[Array]) -> list[Any]:
        found = dict(zip(floating, cotangents, strict=True))
        return [found.get(index) for index in range(len(constants))]

    return evaluate, [constants[index] for index in floating], restore


def _differentiable(result: Any) -> list[Array]:
    """The floating leaves; the losses are the first."""
    return [leaf for leaf in jax.tree.leaves(result) if _has_derivative(leaf)]


def _has_derivative(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))
