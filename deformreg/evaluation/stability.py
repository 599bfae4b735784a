"""Relative stability: how much more a network reacts to smooth deformations than to noise of the same size.

References:
    Petrini et al., "Relative stability toward diffeomorphisms indicates performance in deep nets", NeurIPS 2021.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import lengths_along, wide
from deformreg.attacks.attack import LogitsFn
from deformreg.warping import warp


class Stability(NamedTuple):
    """The reaction of a network's logits, as means over images and draws.

    Attributes:
        ratio: `deformed` / `noisy`: below 1 if the network is more stable to deformations than to noise.
        deformed: mean squared change of the logits under smooth fields.
        noisy: the same under Gaussian noise that changes each image by the same Euclidean length.
    """

    ratio: float
    deformed: float
    noisy: float


def smooth_fields(key: Array, count: int, height: int, width: int, *, cutoff: int = 3) -> Float[Array, "n h w 2"]:
    """Draws random fields of maximum entropy: sums of sines up to a frequency, zero at the border.

    Component by component ``sum C_ij sin(i pi x) sin(j pi y)`` over ``i^2 + j^2 <= cutoff^2``, with independent
    Gaussian ``C_ij`` of variance ``1 / (i^2 + j^2)``.

    Args:
        key: a JAX random key.
        count: number of fields.
        height: of the fields, in pixels.
        width: of the fields, in pixels.
        cutoff: the largest frequency, at least 2, in half waves per image.

    Returns:
        Fields whose root mean square length is 1 pixel.

    Raises:
        ValueError: `cutoff` below 2.

    Example:
        >>> import jax
        >>> fields = smooth_fields(jax.random.key(0), 2, 8, 8)
        >>> fields.shape, round(float((fields**2).sum(-1).mean()), 3)
        ((2, 8, 8, 2), 1.0)

    References:
        Petrini et al. 2021, section 2.1; here every field is scaled to one length instead of drawn at a temperature.
    """
    cutoff = _checks.count("cutoff", cutoff, minimum=2)
    waves = jnp.arange(1, cutoff + 1)
    frequencies = waves[:, None] ** 2 + waves[None, :] ** 2
    spread = jnp.where(frequencies <= cutoff**2, 1 / jnp.sqrt(frequencies), 0.0)
    coefficients = jax.random.normal(_checks.key(key), (count, cutoff, cutoff, 2)) * spread[None, :, :, None]
    rows, columns = (jnp.sin(jnp.pi * waves[:, None] * (jnp.arange(side) + 0.5) / side) for side in (height, width))
    fields = jnp.einsum("nijk,ih,jw->nhwk", coefficients, rows, columns)
    return fields / jnp.sqrt(jnp.mean(jnp.sum(fields**2, axis=-1), axis=(1, 2)))[:, None, None, None]


def relative_stability(
    logits_fn: LogitsFn,
    images: Float[Array, "n h w c"],
    *,
    key: Array,
    size: float = 0.5,
    cutoff: int = 3,
    num_draws: int = 8,
) -> Stability:
    """Compares the change of the logits under smooth deformations with that under noise.

    Args:
        logits_fn: ``images -> logits[n, classes]``.
        images: any range.
        key: a JAX random key.
        size: root mean square length of the displacements, in pixels.
        cutoff: see `smooth_fields`.
        num_draws: fields, and draws of noise, per image.

    Returns:
        The stability. Over 15 networks on CIFAR-10, Petrini et al. found a test error of about ``0.2 sqrt(ratio)``.

    Raises:
        TypeError: integer images.
        ValueError: images not of rank 4, a size that is not positive, a deformation that changes no image, or logits
            that are not finite, other than -inf for the same classes throughout.

    Example:
        >>> import jax
        >>> pixels = lambda images: images.reshape(len(images), -1)  # reacts to every change alike
        >>> images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
        >>> round(relative_stability(pixels, images, key=jax.random.key(1)).ratio, 3)
        1.0
    """
    images = _checks.floating("images", images, rank=4, axes="n h w c")
    _checks.positive("size", size)
    num_draws = _checks.count("num_draws", num_draws)

    @jax.jit
    def changes(images: Array, key: Array) -> tuple[Array, Array]:
        clean = _checks.logits(logits_fn(images), images.shape[0])

        def drawn(key: Array) -> tuple[Array, Array]:
            field_key, noise_key = jax.random.split(key)
            fields = size * smooth_fields(field_key, *images.shape[:3], cutoff=cutoff)
            deformed = warp(images, fields.astype(images.dtype))
            noise = jax.random.normal(noise_key, images.shape, images.dtype)
            lengths, wanted = (lengths_along(one, (1, 2, 3)) for one in (noise, deformed - images))
            noisy = images + (noise * (wanted / lengths)).astype(images.dtype)
            reactions = [jnp.mean(jnp.sum(_change(logits_fn(one), clean) ** 2, axis=1)) for one in (deformed, noisy)]
            return reactions[0], reactions[1]

        reactions: tuple[Array, Array] = jax.lax.map(drawn, jax.random.split(key, num_draws))
        return reactions

    deformed, noisy = (float(jnp.mean(one)) for one in changes(images, _checks.key(key)))
    if not math.isfinite(deformed + noisy):
        raise ValueError("logits_fn returns logits that are not finite, for clean, deformed or noisy images")
    if noisy == 0:
        raise ValueError("the images do not change under deformations, or the logits under noise: take other images")
    return Stability(deformed / noisy, deformed, noisy)


def _change(logits: Array, clean: Array) -> Array:
    # A class that is masked out has the logit -inf before and after.
    return jnp.where(jnp.isneginf(logits) & jnp.isneginf(clean), 0, wide(logits) - wide(clean))
