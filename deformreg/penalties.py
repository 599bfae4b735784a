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

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg.noise import Noise, gaussian
from deformreg.perturbations import Perturbation, Units, additive, flow, pull_back

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
    """The penalty from a finite difference along each example's own gradient: no double backpropagation.

    With ``v`` the normalized gradient, held constant, and ``dT`` the derivative of the family at the identity, the
    penalty is ``((loss(images + h dT v) - loss(images)) / h)^2``: the squared norm of the gradient up to O(h).
    Training differentiates first-order quantities only. The images move along the family's tangent and not by the
    family itself: a warp has a kink at the identity, and behind it another slope.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called on the images and on the perturbed ones.
        images: any range.
        perturbation: the family; None is ``flow()``.
        step_size: h, in the unit of the parameters and of their Euclidean norm over the example. Too small a step
            drowns in the losses' rounding, about 1e-7 of their size.
        has_aux: whether `loss_fn` returns ``(losses, aux)``; `aux` is that of the unperturbed images.

    Returns:
        ``(penalties[n], losses[n])``, or with `has_aux` ``(penalties, (losses, aux))``.

    Raises:
        TypeError: as `gradient_penalty`.
        ValueError: as `gradient_penalty`, or a `step_size` not above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1)
        >>> penalties, _ = finite_difference_penalty(lambda x: x.sum((1, 2, 3)), ramp, step_size=0.5)
        >>> penalties.round(4).tolist()
        [3.0]

    References:
        Finlay and Oberman 2019, section 3.2.
    """
    _checks.positive("step_size", step_size)
    perturbation = flow() if perturbation is None else perturbation
    images = _checks.images(images)
    gradients, result = image_gradients(loss_fn, images, has_aux=has_aux)
    gradients = jax.lax.stop_gradient(gradients)
    gradients = pull_back(perturbation, gradients, images)
    squared = squared_norm(gradients)
    # Where the gradient vanishes so does the difference: any finite direction will do, zero is one.
    scale = jnp.where(squared > 0, step_size * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)
    step = jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype).reshape((-1,) + (1,) * (leaf.ndim - 1)), gradients)
    _, along = jax.jvp(
        lambda params: perturbation.apply(params, images), (perturbation.init(images),), (jax.lax.stop_gradient(step),)
    )
    moved = images + along
    losses = result[0] if has_aux else result
    ahead = _checked(loss_fn, has_aux)(moved)
    ahead = ahead[0] if has_aux else ahead
    return ((ahead - losses) / step_size) ** 2, result


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


def random_start(
    key: Array,
    images: Float[Array, "n h w c"],
    perturbation: Perturbation | None = None,
    noise: Noise | float = 0.1,
    *,
    image_range: tuple[float, float] | None = (0.0, 1.0),
) -> Float[Array, "n h w c"]:
    """Perturbs images at random, so that a penalty taken there flattens a neighbourhood and not one point.

    Args:
        key: a JAX random key; the result is a function of it.
        images: inside `image_range`.
        perturbation: the family; None is ``flow(boundary="zeros")``, as in the authors' code.
        noise: a law of `deformreg.noise`, or the standard deviation of a Gaussian in the parameters' unit. The
            authors' 0.01 in normalized units is 0.155 pixels for 32x32 images.
        image_range: the result is clipped to it, as in the authors' code; None leaves it.

    Returns:
        The perturbed images.

    Raises:
        TypeError: integer images.
        ValueError: images not of rank 4, or a negative `noise`.

    Example:
        >>> import jax
        >>> images = jax.numpy.full((1, 4, 4, 1), 0.5)
        >>> random_start(jax.random.key(0), images, noise=0.0).tolist() == images.tolist()
        True

    References:
        Xia and Li 2021, section 3.
    """
    images = _checks.images(images)
    perturbation = flow(boundary="zeros") if perturbation is None else perturbation
    law = noise if callable(noise) else gaussian(noise)
    moved = perturbation.apply(law(key, perturbation.init(images)), images)
    return moved if image_range is None else jnp.clip(moved, *image_range)


def paper_weight(
    weight: float, *, batch_size: int, image_size: int | tuple[int, int], units: Units = "pixels"
) -> float:
    """Converts the released code's weight to the one to use with the mean of `gradient_penalty`.

    That code squares the gradient of the batch's *mean* loss, in normalized units, and sums it per example before the
    mean: a factor ``1 / batch_size^2`` hides in its weight, and ``((size - 1) / 2)^2`` in its units.

    Args:
        weight: lambda as given to the authors' code (100 to 300 there).
        batch_size: of that code's run (128 there).
        image_size: side of its images in pixels (32 there), or (height, width).
        units: of the flow the penalty is taken with here; ``"normalized"`` means ``flow(units="normalized")``.

    Returns:
        The weight: losses squared times this times units squared.

    Raises:
        ValueError: a negative weight, a count below 1, unknown units, or ``"pixels"`` with unequal sides: no single
            weight in pixels exists there, so use ``flow(units="normalized")``.

    Example:
        >>> round(paper_weight(300, batch_size=128, image_size=32), 2)
        4.4
    """
    _checks.non_negative("weight", weight)
    batch_size = _checks.count("batch_size", batch_size)
    _checks.choice("units", units, ("pixels", "normalized"))
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    height, width = _checks.count("image_size", height, minimum=2), _checks.count("image_size", width, minimum=2)
    per_normalized = weight / batch_size**2
    if units == "normalized":
        return per_normalized
    if height != width:
        raise ValueError(
            f"image_size must be square for units='pixels', got {height}x{width}: use units='normalized' "
            "with flow(units='normalized')"
        )
    return per_normalized * ((width - 1) / 2) ** 2
