r"""How much a deformation of limited size can raise the loss: bounds to first order, and estimates of second order.

Let ``g`` be the image gradient of an example's loss and ``dT`` the derivative of a family at the identity. For small
parameters in a ball, the loss rises by at most ``max_p <dT^T g, p>``: the radius times the *dual norm* of the
parameters' gradient (`steepest_increase`). This is the quantity that flow gradient regularization makes small.

An input gradient gives other bounds. A displacement within the radius changes a pixel by at most ``c``
(`reachable_change`), so to first order the loss rises by at most ``sum |g| c``, which is at most ``|g|_2 |c|_2`` and
``|g|_1 max c``. Below these three is the largest increase that is linear in the pixels but exact in the warp::

    displacement = sum_pixels max_d <g(pixel), image(pixel + d) - image(pixel)>  <=  sum |g| c

For a loss that is linear in the pixels, `displacement` is attained. All hold to first order in the network only: where
its loss is curved, an attack can exceed them, and `second_order_increase` and `largest_curvature` estimate by how much.

References:
    Xia and Li, "Improving Resistance to Adversarial Deformations by Regularizing Gradients", Neurocomputing 455, 2021
    (the bound by the flow gradient against the one by the input gradient; its exact form is not public).
    Boyd and Vandenberghe, "Convex Optimization", 2004, appendix A.1.6 (dual norms).
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import aligned, draw_leaves, inner, scaled, wide
from deformreg._displacements import check_box, over_displacements, planes, sum_channels
from deformreg._families import check_layout, family_or_flow, identity
from deformreg.balls import Ball, l2, linf
from deformreg.penalties import LossFn, image_gradients
from deformreg.perturbations import Params, Perturbation, flow, pull_back
from deformreg.warping import Boundary


class FlowBounds(NamedTuple):
    """First-order bounds on the increase of each example's loss under flows within a ball; each is float[n].

    Attributes:
        losses: of the images as they are.
        flow: by the gradient with respect to the flow: radius times dual norm. The slope at the identity is the
            forward difference, so of an image that is steeper backwards it underestimates the increase.
        displacement: exact in the warp, linear in the pixels.
        pixels: by the input gradient, each pixel times the most that it can change: ``sum |g| c``.
        euclidean: by its Euclidean norm: ``|g|_2 |c|_2``.
        largest: by its l1 norm: ``|g|_1 max c``.
    """

    losses: Float[Array, " n"]
    flow: Float[Array, " n"]
    displacement: Float[Array, " n"]
    pixels: Float[Array, " n"]
    euclidean: Float[Array, " n"]
    largest: Float[Array, " n"]


def reachable_change(
    images: Float[Array, "n *space c"], radius: float, *, boundary: Boundary = "edge"
) -> Float[Array, "n *space c"]:
    """The most that a displacement of at most `radius` per component changes each pixel value, exactly.

    Args:
        images: any range.
        radius: in pixels, one number.
        boundary: what lies outside the image, see `deformreg.warp`.

    Returns:
        Changes of at least 0, in the images' unit.

    Raises:
        TypeError: integer images, or a radius that is not a number.
        ValueError: the radius is an array, negative or infinite, or `boundary` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> reachable_change(jnp.array([0.0, 1.0, 4.0]).reshape(1, 1, 3, 1), 0.5).ravel().tolist()
        [0.5, 1.5, 1.5]
    """
    images = _checks.images(images)
    _checks.choice("boundary", boundary, get_args(Boundary))
    _checks.radius("radius", radius)

    clean = planes(images)

    def visit(largest: list[Array], displaced: list[Array], number: Array) -> list[Array]:
        del number
        return [jnp.maximum(most, jnp.abs(b - a)) for most, a, b in zip(largest, clean, displaced, strict=True)]

    nothing = [jnp.zeros_like(each) for each in clean]
    return jnp.concatenate(over_displacements(images, linf(radius), boundary, visit, nothing), axis=-1)


def flow_bounds(
    loss_fn: LossFn, images: Float[Array, "n *space c"], ball: Ball, *, boundary: Boundary = "edge"
) -> FlowBounds:
    """Bounds by the flow gradient and by the input gradient, for the same flows.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called once.
        images: any range.
        ball: `deformreg.linf` or `deformreg.pixelwise_l2`, its radius one number of pixels. For the latter, all but
            `flow` are the bounds of the cube around it.
        boundary: what lies outside the image, see `deformreg.warp`.

    Returns:
        The bounds; the difference of `losses` between attacked and clean images compares with them.

    Raises:
        TypeError: integer images, or a `loss_fn` that does not return floating losses.
        ValueError: another ball, an array of radii, or images of another rank.

    Example:
        >>> import jax.numpy as jnp
        >>> from deformreg import linf
        >>> step = jnp.array([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 4, 1)
        >>> bounds = flow_bounds(lambda x: x.sum((1, 2, 3)), step, linf(0.5))
        >>> bounds.flow.tolist(), bounds.displacement.tolist(), bounds.pixels.tolist()
        ([0.5], [0.5], [1.0])
    """
    images = _checks.images(images)
    ball = check_box(ball)
    family = flow(boundary=boundary)
    check_layout(family, images.shape)
    gradients, losses = image_gradients(loss_fn, images)
    values, slopes = wide(images), wide(gradients)

    clean, each_slope = planes(values), planes(slopes)

    def visit(largest: tuple[list[Array], Array], displaced: list[Array], number: Array) -> tuple[list[Array], Array]:
        del number
        differences = [wide(there) - here for there, here in zip(displaced, clean, strict=True)]
        gains = sum_channels([slope * each for slope, each in zip(each_slope, differences, strict=True)])
        changes = [jnp.maximum(most, jnp.abs(each)) for most, each in zip(largest[0], differences, strict=True)]
        return changes, jnp.maximum(largest[1], gains)

    nothing = [jnp.zeros_like(each) for each in clean], jnp.zeros_like(values[..., 0])
    changes, gains = over_displacements(images, linf(ball.radius), boundary, visit, nothing)
    change = jnp.concatenate(changes, axis=-1)
    axes = tuple(range(1, images.ndim))
    sizes = jnp.abs(slopes)
    return FlowBounds(
        losses=losses,
        flow=ball.support(pull_back(family, gradients, images)),
        displacement=jnp.sum(gains, axis=axes[:-1]),
        pixels=jnp.sum(sizes * change, axis=axes),
        euclidean=_length(slopes) * _length(change),
        largest=jnp.sum(sizes, axis=axes) * jnp.max(change, axis=axes),
    )


def second_order_increase(
    loss_fn: LossFn, images: Float[Array, "n *space c"], attacked: Float[Array, "n *space c"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Estimates of the loss's increase from images to attacked images, by the first and by the first two derivatives.

    With ``d = attacked - images``, gradient g and Hessian H of an example's loss: ``<g, d>`` and
    ``<g, d> + <d, H d> / 2``. The warp is exact; only the network is approximated.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced and twice differentiable.
        images: any range.
        attacked: of the same shape, for example `images` of an attack's result.

    Returns:
        ``(first_order[n], second_order[n])``.

    Raises:
        TypeError: integer images.
        ValueError: shapes that differ, or a `loss_fn` that does not return one loss per example.

    Example:
        >>> import jax.numpy as jnp
        >>> first, second = second_order_increase(
        ...     lambda x: (x**2).sum((1, 2, 3)), jnp.ones((1, 1, 1, 1)), jnp.full((1, 1, 1, 1), 3.0)
        ... )
        >>> first.tolist(), second.tolist()  # the loss rises from 1 to 9
        ([4.0], [8.0])
    """
    images, attacked = _checks.images(images), _checks.images(attacked, "attacked")
    if images.shape != attacked.shape:
        raise ValueError(f"attacked must have the images' shape {images.shape}, got {attacked.shape}")
    change = attacked - images
    gradients, curved = jax.jvp(lambda at: image_gradients(loss_fn, at)[0], (images,), (change,))
    first = inner(gradients, change)
    return first, first + inner(curved, change) / 2


def largest_curvature(
    loss_fn: LossFn,
    images: Float[Array, "n *space c"],
    perturbation: Perturbation | None = None,
    *,
    num_steps: int = 20,
    key: Array,
) -> Float[Array, " n"]:
    """The eigenvalue of largest size of each example's Hessian with respect to a family's parameters.

    The family is taken to first order, so this is the network's curvature along its tangent: ``dT^T H dT``. Together
    with the gradient, the eigenvalue bounds the increase in an l2 ball to second order: ``radius |g| + radius^2
    |eigenvalue| / 2``. What is returned is an estimate from below: power iteration comes near the eigenvalue slowly
    where others are nearly as large.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced and twice differentiable; examples must not interact.
        images: any range.
        perturbation: the family; None means ``flow()``.
        num_steps: steps of the power iteration, each a Hessian-vector product.
        key: a JAX random key, for the start.

    Returns:
        The estimates, with their sign, in loss per squared unit of the parameters. Where a positive and a negative
        eigenvalue are nearly as large, the sign is of the one that has more weight in the last step's direction.

    Raises:
        TypeError, ValueError: as `deformreg.gradient_penalty`; a `num_steps` below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import additive
        >>> scales = jnp.array([1.0, -3.0]).reshape(1, 1, 2, 1)
        >>> bowl = lambda x: (scales * x**2).sum((1, 2, 3)) / 2
        >>> round(float(largest_curvature(bowl, jnp.ones((1, 1, 2, 1)), additive(), key=jax.random.key(0))[0]), 3)
        -3.0

    References:
        Golub and Van Loan, "Matrix Computations", 2013, section 7.3 (power iteration).
    """
    perturbation, images = family_or_flow(perturbation), _checks.images(images)
    check_layout(perturbation, images.shape)
    num_steps = _checks.count("num_steps", num_steps)
    zeros = identity(perturbation, images)
    _, push = jax.linearize(lambda params: perturbation.apply(params, images), zeros)

    def product(direction: Params) -> Params:
        _, curved = jax.jvp(lambda at: image_gradients(loss_fn, at)[0], (images,), (push(direction),))
        return pull_back(perturbation, curved, images)

    def step(_: Any, direction: Params) -> Params:
        return _normalized(product(direction))

    def draw(key: Array, leaf: Array) -> Array:
        return jax.random.normal(key, leaf.shape, leaf.dtype)

    start = aligned(draw_leaves(draw, _checks.key(key), zeros), images)
    start = _normalized(jax.tree.map(wide, start))
    direction = jax.lax.fori_loop(0, num_steps, step, start)
    # Not the Rayleigh quotient: eigenvalues of both signs would cancel in it.
    curved = product(direction)
    return jnp.copysign(_length(curved), inner(direction, curved))


def _length(params: Params) -> Array:
    """Euclidean lengths per example, also of gradients whose squares underflow."""
    return l2(1.0).norm(params)


def _normalized(params: Params) -> Params:
    lengths = _length(params)
    return scaled(params, jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 0))
