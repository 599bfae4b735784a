"""The exact penalty, by double backpropagation, and the image gradients under all penalties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import aligned
from deformreg._families import check_layout, family_or_flow
from deformreg.perturbations import Params, Perturbation, pull_back

LossFn = Callable[..., Any]
"""``images -> losses[n]``, or with ``has_aux``: ``images -> (losses[n], aux)``; one loss per example, unreduced."""

Size = Callable[[Params], Array]
"""``gradients -> float[n]``: a number per example, from gradients with respect to a family's parameters."""


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
    checked = checked_loss(loss_fn, has_aux)
    if has_aux:
        losses, vjp, aux = jax.vjp(checked, images, has_aux=True)
        result = losses, aux
    else:
        losses, vjp = jax.vjp(checked, images)
        result = losses
    if (spread := aligned(images, losses)) is not images:
        return image_gradients(loss_fn, spread, has_aux=has_aux)
    (gradients,) = vjp(jnp.ones_like(losses))
    return gradients, result


def checked_loss(loss_fn: LossFn, has_aux: bool) -> LossFn:
    """Wraps `loss_fn` in checks of its result, so that a reduced loss fails with a clear message."""

    def checked(images: Array) -> Any:
        result = _checks.called("loss_fn", loss_fn, images)
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
    size: Size = squared_norm,
    has_aux: bool = False,
) -> tuple[Float[Array, " n"], Any]:
    """The exact penalty: ``|d loss_i / d params_i|^2`` at the identity, per example, or another size of the gradient.

    One forward pass and one backward pass to the images give both the penalties and the clean losses. To train, add the
    weighted mean of the penalties to the mean loss. If `loss_fn` does not use batch statistics, an example's penalty
    does not depend on the batch size or on how a batch is divided over devices.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called once.
        images: any range.
        perturbation: the family; None means ``flow()``, as in the paper. The unit of the penalty is then that of the
            squared loss, per squared pixel of displacement.
        size: ``gradients -> float[n]``, of the gradients with respect to the parameters. The support of a ball gives
            the most that the loss increases inside the ball, to first order: with ``size=linf(0.5).support`` and a
            weight of 1, the objective is the first-order loss under attack.
        has_aux: whether `loss_fn` returns ``(losses, aux)``, for logits or batch statistics.

    Returns:
        ``(penalties[n], losses[n])``, or with `has_aux` ``(penalties, (losses, aux))``.

    Raises:
        TypeError: integer images, or a `loss_fn` that returns something other than floating losses.
        ValueError: images of another shape, or a `loss_fn` or `size` that does not return one number per example.

    Example:
        >>> import jax.numpy as jnp
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1)
        >>> penalties, losses = gradient_penalty(lambda images: images.sum((1, 2, 3)), ramp)
        >>> penalties.tolist(), losses.tolist()  # three pixels of slope 1, the last of slope 0
        ([3.0], [6.0])
        >>> from deformreg import linf
        >>> gradient_penalty(lambda images: images.sum((1, 2, 3)), ramp, size=linf(0.5).support)[0].tolist()
        [1.5]

    References:
        Xia and Li 2021, section 3 (with ``flow()``); Ross and Doshi-Velez 2018 (with ``additive()``);
        Rodriguez-Munoz et al. 2024 (with ``additive()`` and ``linf(radius).support``).
    """
    perturbation, images = family_or_flow(perturbation), _checks.images(images)
    check_layout(perturbation, images.shape)
    gradients, losses = image_gradients(loss_fn, images, has_aux=has_aux)
    return sizes_of(size, pull_back(perturbation, gradients, images), len(images)), losses


def sizes_of(size: Size, gradients: Params, count: int) -> Array:
    """The size of each of `count` examples' gradients; raises if the function returns something else."""
    _checks.function("size", size)
    sizes = _checks.array("size's result", size(gradients))
    if sizes.shape != (count,):
        raise ValueError(f"size must return one number per example, shape ({count},), got shape {sizes.shape}")
    return _checks.floating("size's result", sizes)
