"""Gradient penalties: the squared gradient of each example's loss with respect to a perturbation, at the identity.

One vjp through the model gives the losses and the image gradient; a family's pullback turns the latter into its own
gradient. Differentiating the penalty (double backpropagation) is left to `jax.grad`. A training loss is, in full::

    def objective(params):
        loss_fn = lambda images: cross_entropy(model(params, images), labels)
        penalties, losses = gradient_penalty(loss_fn, images)
        return jnp.mean(losses) + weight * jnp.mean(penalties)

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
from deformreg.perturbations import Perturbation, additive, flow, pull_back

LossFn = Callable[..., Any]
"""``images -> losses[n]``, or with ``has_aux`` ``images -> (losses[n], aux)``; never reduced over the batch."""


def image_gradients(
    loss_fn: LossFn, images: Float[Array, "n h w c"], *, has_aux: bool = False
) -> tuple[Float[Array, "n h w c"], Any]:
    """The gradient of every example's loss with respect to its image, and the losses, from one pass.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced. Where the examples interact (batch normalization on the batch's
            own statistics), an image's gradient is that of the *sum* of the losses.
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
    """`loss_fn` with its result checked, so that a reduced loss fails by name and not deep inside a vjp."""

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

    One forward pass and one backward pass to the images; the clean losses come with it. To train, take the mean of
    the penalties, weigh it and add it to the mean loss: it depends neither on the batch size nor on how a batch is
    split over devices (batch statistics inside `loss_fn` aside).

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called once.
        images: any range.
        perturbation: the family; None is ``flow()``, the paper's, whose penalty is in losses squared per pixel of
            displacement squared.
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
    perturbation = flow() if perturbation is None else perturbation
    gradients, losses = image_gradients(loss_fn, images, has_aux=has_aux)
    return squared_norm(pull_back(perturbation, gradients, jnp.asarray(images))), losses


def finite_difference_penalty(
    loss_fn: LossFn,
    images: Float[Array, "n h w c"],
    perturbation: Perturbation | None = None,
    *,
    step_size: float = 0.01,
    has_aux: bool = False,
) -> tuple[Float[Array, " n"], Any]:
    """The penalty with a derivative by finite differences: no double backpropagation, the memory of one pass.

    The value is the exact ``|g|^2``, of forward and backward pass. Its derivative with respect to the network's
    parameters is a difference along the gradient's own direction: with ``v = g / |g|``, held constant, ``dT`` the
    derivative of the family at the identity and ``D = (loss(images + h dT v) - loss(images)) / h``, it is
    ``2 |g| dD``, which differs from ``d |g|^2`` by O(h). Two ordinary passes, one after the other, compute it: the
    work of 8 forward passes where the exact penalty takes 6 and a plain loss 3, but little more memory than the plain
    loss. The images move along the family's tangent and not by the family itself: a warp has a kink at the identity,
    and behind it another slope. Forward-mode differentiation is not to be had.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called once. It may close over what is differentiated.
        images: any range.
        perturbation: the family; None is ``flow()``.
        step_size: h, in the unit of the parameters and of their Euclidean norm over the example. Too small a step
            drowns in rounding: the derivatives' own, about 1e-7 of their size, over h.
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
        Finlay and Oberman 2019, section 3.2 (there the difference itself is squared).
    """
    _checks.positive("step_size", step_size)
    perturbation = flow() if perturbation is None else perturbation
    images = _checks.images(images)
    hold = jax.lax.stop_gradient
    function, constants = _closed(_checked(loss_fn, has_aux), images)
    gradients, result = image_gradients(lambda x: function(x, hold(constants)), hold(images), has_aux=has_aux)
    gradients = hold(gradients)
    pulled, push_forward = jax.vjp(lambda leaf: pull_back(perturbation, leaf, images), gradients)
    squared = squared_norm(pulled)
    # Where the gradient vanishes so does the difference: any finite direction will do, zero is one.
    scale = jnp.where(squared > 0, step_size * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)
    step = jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype).reshape((-1,) + (1,) * (leaf.ndim - 1)), pulled)
    (along,) = push_forward(hold(step))  # the pullback's transpose is the family's tangent at the identity
    slopes = hold(2 * jnp.sqrt(squared) / step_size)
    penalties, result = _with_difference(function, (hold(squared), result), slopes, images, images + along, constants)
    return penalties, result


def _closed(function: Callable[[Array], Any], images: Array) -> tuple[Callable[..., Any], list[Any]]:
    """``(images, constants) -> result`` that closes over nothing traced, and the constants `function` closes over."""
    traced, shape = jax.make_jaxpr(function, return_shape=True)(images)

    def apply(images: Array, constants: Sequence[Any]) -> Any:
        leaves = jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(traced.jaxpr, constants))(images)
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return apply, traced.consts


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_difference(
    loss_fn: LossFn, known: Any, slopes: Array, images: Array, moved: Array, constants: Sequence[Any]
) -> Any:
    """`known`, penalties and what `loss_fn` returned; their derivatives are those of ``slopes * (moved - images)``."""
    return known


def _with_difference_forward(loss_fn: LossFn, known: Any, *arguments: Any) -> tuple[Any, Any]:
    return known, arguments


def _with_difference_backward(loss_fn: LossFn, arguments: Any, cotangents: Any) -> tuple[Any, ...]:
    slopes, images, moved, constants = arguments
    penalties_bar, result_bar = cotangents
    losses_bar, *aux_bar = _differentiable(result_bar)
    difference = (slopes * penalties_bar).astype(losses_bar.dtype)
    bars = [losses_bar - difference, *aux_bar], [difference, *map(jnp.zeros_like, aux_bar)]
    varying = [index for index, leaf in enumerate(constants) if _has_derivative(leaf)]

    def evaluate(inputs: Array, *leaves: Array) -> list[Array]:
        replaced = dict(zip(varying, leaves, strict=True))
        return _differentiable(loss_fn(inputs, [replaced.get(index, leaf) for index, leaf in enumerate(constants)]))

    def one_pass(sums: Any, inputs_and_bar: Any) -> tuple[Any, Array]:
        inputs, bar = inputs_and_bar
        inputs_bar, *leaves_bar = jax.vjp(evaluate, inputs, *(constants[index] for index in varying))[1](bar)
        return jax.tree.map(jnp.add, sums, leaves_bar), inputs_bar

    # A loop, so that the passes cannot overlap: the memory of one is all they take.
    zeros = [jnp.zeros_like(constants[index]) for index in varying]
    passes = jax.tree.map(lambda *leaves: jnp.stack(leaves), (images, bars[0]), (moved, bars[1]))
    found, (images_bar, moved_bar) = jax.lax.scan(one_pass, zeros, passes)
    constants_bar: list[Any] = [None] * len(constants)
    for index, leaf in zip(varying, found, strict=True):
        constants_bar[index] = leaf
    return None, None, images_bar, moved_bar, constants_bar


_with_difference.defvjp(_with_difference_forward, _with_difference_backward)


def _differentiable(result: Any) -> list[Array]:
    """The leaves that have derivatives; the losses are the first."""
    return [leaf for leaf in jax.tree.leaves(result) if _has_derivative(leaf)]


def _has_derivative(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def input_gradient_penalty(
    loss_fn: LossFn, images: Float[Array, "n h w c"], *, has_aux: bool = False
) -> tuple[Float[Array, " n"], Any]:
    """Input gradient regularization: ``gradient_penalty`` with ``additive()``.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced.
        images: any range.
        has_aux: whether `loss_fn` returns ``(losses, aux)``.

    Returns:
        As `gradient_penalty`; the penalties are in losses squared per image unit squared.

    Raises:
        TypeError: as `gradient_penalty`.
        ValueError: as `gradient_penalty`.

    Example:
        >>> import jax.numpy as jnp
        >>> input_gradient_penalty(lambda x: x.sum((1, 2, 3)), jnp.zeros((1, 2, 2, 1)))[0].tolist()
        [4.0]

    References:
        Ross and Doshi-Velez 2018, equation 3.
    """
    return gradient_penalty(loss_fn, images, additive(), has_aux=has_aux)


def flow_gradient_penalty(
    loss_fn: LossFn, images: Float[Array, "n h w c"], *, has_aux: bool = False
) -> tuple[Float[Array, " n"], Any]:
    """Flow gradient regularization: ``gradient_penalty`` with ``flow()``, in pixels.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced.
        images: any range.
        has_aux: whether `loss_fn` returns ``(losses, aux)``.

    Returns:
        As `gradient_penalty`.

    Raises:
        TypeError: as `gradient_penalty`.
        ValueError: as `gradient_penalty`.

    Example:
        >>> import jax.numpy as jnp
        >>> flow_gradient_penalty(lambda x: x.sum((1, 2, 3)), jnp.ones((1, 2, 2, 1)))[0].tolist()
        [0.0]

    References:
        Xia and Li 2021, section 3.
    """
    return gradient_penalty(loss_fn, images, flow(), has_aux=has_aux)
