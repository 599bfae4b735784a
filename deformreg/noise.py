"""Noise laws over a family's parameters, pure functions ``(key, params) -> params``, and randomly perturbed images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import aligned, draw_leaves
from deformreg._families import family_or_flow, identity
from deformreg.perturbations import Params, Perturbation, flow

Noise = Callable[[Array, Params], Params]
"""``(key, params) -> params``: random parameters of the same shapes, independent for every example and component."""


def gaussian(stddev: float) -> Noise:
    """Independent normal components with mean zero.

    Args:
        stddev: standard deviation in the unit of the parameters (pixels for a flow).

    Returns:
        The law.

    Raises:
        ValueError: `stddev` is negative.

    Example:
        >>> import jax
        >>> gaussian(0.1)(jax.random.key(0), jax.numpy.zeros((2, 8, 8, 2))).shape
        (2, 8, 8, 2)
    """
    _checks.non_negative("stddev", stddev)
    return partial(draw_leaves, lambda key, leaf: stddev * jax.random.normal(key, leaf.shape, leaf.dtype))


def uniform(radius: float) -> Noise:
    """Independent components, uniform on [-radius, radius].

    Args:
        radius: in the unit of the parameters (pixels for a flow).

    Returns:
        The law.

    Raises:
        ValueError: `radius` is negative.

    Example:
        >>> import jax
        >>> draw = uniform(0.5)(jax.random.key(0), jax.numpy.zeros((2, 8, 8, 2)))
        >>> bool(abs(draw).max() <= 0.5)
        True
    """
    _checks.non_negative("radius", radius)
    return partial(draw_leaves, lambda key, leaf: radius * jax.random.uniform(key, leaf.shape, leaf.dtype, -1, 1))


def random_start(
    key: Array,
    images: Float[Array, "n *space c"],
    perturbation: Perturbation | None = None,
    noise: Noise | float = 0.1,
    *,
    image_range: tuple[float, float] | None = (0.0, 1.0),
) -> Float[Array, "n *space c"]:
    """Perturbs images at random, so that a penalty taken there flattens a neighbourhood instead of one point.

    Args:
        key: a JAX random key.
        images: inside `image_range`.
        perturbation: the family; None is ``flow(boundary="zeros")``, as in the authors' code.
        noise: a law of `deformreg.noise`, or the standard deviation of a Gaussian in the parameters' unit. The
            authors' 0.01 in normalized units is 0.155 pixels for 32x32 images.
        image_range: the result is clipped to it, as in the authors' code; None disables clipping. Inside `jit`, where
            values cannot be checked, an image that leaves it is clipped to its own range.

    Returns:
        The perturbed images.

    Raises:
        TypeError: integer images.
        ValueError: images of another rank or outside `image_range`, or a negative `noise`.

    Example:
        >>> import jax
        >>> images = jax.numpy.full((1, 4, 4, 1), 0.5)
        >>> random_start(jax.random.key(0), images, noise=0.0).tolist() == images.tolist()
        True

    References:
        Xia and Li 2021, section 3.
    """
    images = _checks.images(images)
    perturbation = flow(boundary="zeros") if perturbation is None else family_or_flow(perturbation)
    key = _checks.key(key)
    if image_range is not None:
        image_range = _checks.image_range(image_range)
    law = noise if callable(noise) else gaussian(noise)
    moved = perturbation.apply(aligned(law(key, identity(perturbation, images)), images), images)
    if image_range is None:
        return moved
    _checks.in_range("images", images, image_range)
    axes = tuple(range(1, images.ndim))
    low = jnp.minimum(image_range[0], images.min(axis=axes, keepdims=True))
    high = jnp.maximum(image_range[1], images.max(axis=axes, keepdims=True))
    return jnp.clip(moved, low, high)
