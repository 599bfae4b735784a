"""How much a pixel by pixel displacement raises the loss: the flow gradient penalty with both sides of every pixel."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import wide
from deformreg._displacements import best_displacements
from deformreg._families import check_layout
from deformreg.balls import linf
from deformreg.penalties.exact import LossFn, image_gradients
from deformreg.perturbations import flow
from deformreg.warping import Boundary


def displacement_penalty(
    loss_fn: LossFn,
    images: Float[Array, "n *space c"],
    radius: float,
    *,
    boundary: Boundary = "edge",
    has_aux: bool = False,
) -> tuple[Float[Array, " n"], Any]:
    """The square of the most that flows of a radius raise each loss, to first order in the network, exact in the warp.

    Let ``g`` be an example's image gradient. The penalty is the square of `FlowBounds.displacement`::

        (sum_pixels max_d <g(pixel), image(pixel + d) - image(pixel)>)^2

    where no component of a displacement d exceeds the radius. The flow gradient is the slope towards the next pixel
    only; here each pixel moves to the side that raises the loss more, as in the first step of
    `deformreg.attacks.greedy`.

    A training step costs 6 forward passes, as with `gradient_penalty`, and as many warps of the images as there are
    extreme displacements: 9 for a radius of at most one pixel.

    Args:
        loss_fn: ``images -> losses[n]``, unreduced; called once.
        images: any range.
        radius: of every component of a displacement, in pixels: a number of at least 0.
        boundary: what lies outside the image, see `deformreg.warp`.
        has_aux: whether `loss_fn` returns ``(losses, aux)``.

    Returns:
        ``(penalties[n], losses[n])``, or with `has_aux` ``(penalties, (losses, aux))``. The penalties are in squared
        units of the loss, float32 or wider. Their derivative takes the best displacements as constants, which is exact
        but at ties.

    Raises:
        TypeError: as `gradient_penalty`, or a `radius` that is not a number.
        ValueError: as `gradient_penalty`; the radius is negative or infinite.

    Example:
        >>> import jax.numpy as jnp
        >>> from deformreg import gradient_penalty, linf
        >>> valley = jnp.array([1.0, 0.0, 0.5]).reshape(1, 1, 3, 1)
        >>> middle = lambda images: images[:, 0, 1, 0]
        >>> displacement_penalty(middle, valley, 0.5)[0].item()  # half a pixel to the left gains 0.5
        0.25
        >>> gradient_penalty(middle, valley, size=linf(0.5).support)[0].item() ** 2  # to the right it gains 0.25
        0.0625

    References:
        This project.
    """
    images = _checks.images(images)
    check_layout(flow(boundary=boundary), images.shape)
    _checks.radius("radius", radius)
    gradients, result = image_gradients(loss_fn, images, has_aux=has_aux)
    known = jax.lax.stop_gradient((images, gradients))
    _, offsets = best_displacements(known[0], known[0], known[1], linf(radius), boundary)
    change = flow(boundary=boundary).apply(offsets, images) - images
    increases = jnp.sum(wide(gradients) * wide(change), axis=tuple(range(1, images.ndim)))
    return increases**2, result
