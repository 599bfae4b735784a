"""Images of 8 bits: what an attack finds must survive saving."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float


def to_8_bits(images: Float[Array, "*shape"], image_range: tuple[float | Array, float | Array]) -> Array:
    """Rounds images to the 256 levels of an 8-bit file.

    Args:
        images: any shape.
        image_range: the values of the first and the last level.

    Returns:
        The images as they are read back from the file.

    Example:
        >>> import jax.numpy as jnp
        >>> to_8_bits(jnp.array([0.0, 0.3, 0.7, 1.0]) / 255, (0.0, 1.0)).tolist() == [0, 0, *[1 / jnp.float32(255)] * 2]
        True
    """
    low, high = image_range
    levels = jnp.round(jnp.clip((images - low) / (high - low), 0, 1) * 255)
    return low + levels / 255 * (high - low)


def on_8_bits(logits_fn: Partial, image_range: tuple[float, float]) -> Partial:
    """The model behind a file of 8 bits: it sees rounded images, and its gradient ignores the rounding."""
    return Partial(_rounded, logits_fn, *image_range)


def _rounded(logits_fn: Partial, low: Array, high: Array, images: Array) -> Array:
    # The difference is exactly zero, so that the model sees the levels themselves.
    levels = to_8_bits(images, (low, high)).astype(images.dtype)
    logits: Array = logits_fn(levels + (images - jax.lax.stop_gradient(images)))
    return logits
