"""TrivialAugment: one change a training image, drawn at random with its strength.

References:
    Muller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021. The ranges of
    strength are its standard ones; equalization is by the cumulative histogram itself.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

import deformreg

_TURN = jnp.pi / 6
_SHEAR = 0.3
_SHIFT = 10 / 32  # of the side
_FACTOR = 0.9
_BITS = 4


def trivial(keys: Array, images: Array) -> Array:
    """Changes every image by one operation of `GEOMETRIC` and `PHOTOMETRIC`, each as likely.

    Args:
        keys: one random key per example.
        images: float[n, h, w, c] in [0, 1].

    Returns:
        The changed images, in [0, 1].
    """

    def draw(key: Array) -> tuple[Array, Array]:
        operation_key, strength_key = jax.random.split(key)
        operation = jax.random.randint(operation_key, (), 0, len(GEOMETRIC) + len(PHOTOMETRIC))
        return operation, jax.random.uniform(strength_key, minval=-1.0)

    operations, strengths = jax.vmap(draw)(keys)
    return change(images, operations, strengths)


def change(images: Array, operations: Array, strengths: Array) -> Array:
    """Changes every image by its own operation.

    Args:
        images: float[n, h, w, c] in [0, 1].
        operations: int[n], places in ``(*GEOMETRIC, *PHOTOMETRIC)``.
        strengths: float[n] in [-1, 1].
    """
    height, width = images.shape[1:3]
    y, x = jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2

    def flow(operation: Array, strength: Array) -> Array:
        """How far every pixel is read from its place."""
        still: list[Callable[[Array], tuple[Array, Array]]] = [lambda strength: (jnp.zeros((2, 2)), jnp.zeros(2))]
        moves = [*GEOMETRIC.values(), *still]
        matrix, shift = jax.lax.switch(jnp.minimum(operation, len(GEOMETRIC)), moves, strength)
        positions = jnp.stack(jnp.meshgrid(y, x, indexing="ij"), axis=-1)
        read: Array = positions @ matrix.T + shift * jnp.array([height, width])
        return read

    moved = deformreg.warp(images, jax.vmap(flow)(operations, strengths), boundary="zeros")
    recolour = jnp.maximum(operations - len(GEOMETRIC), 0)  # the first one changes nothing
    changed: Array = jax.vmap(lambda *each: jax.lax.switch(each[0], list(PHOTOMETRIC.values()), *each[1:]))(
        recolour, moved, strengths
    )
    return changed


def _matrix(*entries: Array | float) -> Array:
    return jnp.stack([jnp.asarray(entry) for entry in entries]).reshape(2, 2)


def _rotation(strength: Array) -> tuple[Array, Array]:
    angle = _TURN * strength
    return _matrix(jnp.cos(angle) - 1, jnp.sin(angle), -jnp.sin(angle), jnp.cos(angle) - 1), jnp.zeros(2)


GEOMETRIC: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "rotation": _rotation,
    "shear_x": lambda strength: (_matrix(0.0, 0.0, _SHEAR * strength, 0.0), jnp.zeros(2)),
    "shear_y": lambda strength: (_matrix(0.0, _SHEAR * strength, 0.0, 0.0), jnp.zeros(2)),
    "shift_x": lambda strength: (jnp.zeros((2, 2)), jnp.array([0.0, _SHIFT * strength])),
    "shift_y": lambda strength: (jnp.zeros((2, 2)), jnp.array([_SHIFT * strength, 0.0])),
}
"""``strength -> (matrix, shift)``: a pixel at (y, x) from the centre reads ``matrix @ (y, x)`` pixels from there and
``shift`` sides of the image further."""


def _blend(other: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
    """Moves an image away from another, or towards it."""

    def blend(image: Array, strength: Array) -> Array:
        start = other(image)
        return jnp.clip(start + (1 + _FACTOR * strength) * (image - start), 0, 1)

    return blend


def _grey(image: Array) -> Array:
    """The luminance of a colour image; the channels' mean of another."""
    weights = (
        jnp.array([0.299, 0.587, 0.114]) if image.shape[-1] == 3 else jnp.full(image.shape[-1], 1 / image.shape[-1])
    )
    return jnp.broadcast_to((image @ weights)[..., None], image.shape)


def _soft(image: Array) -> Array:
    """The mean over each pixel and its eight neighbours, five times its own weight; the border stays."""
    height, width = image.shape[:2]
    windows = [image[row : height - 2 + row, column : width - 2 + column] for row in range(3) for column in range(3)]
    inside = (sum(windows[1:], windows[0]) + 4 * image[1:-1, 1:-1]) / 13
    return image.at[1:-1, 1:-1].set(inside)


def _posterize(image: Array, strength: Array) -> Array:
    levels = 2.0 ** (8 - jnp.round(_BITS * jnp.abs(strength)))
    return jnp.floor(image * 255 / 256 * levels) / levels * 256 / 255


def _solarize(image: Array, strength: Array) -> Array:
    return jnp.where(image > 1 - jnp.abs(strength), 1 - image, image)


def _stretch(image: Array, strength: Array) -> Array:
    """Autocontrast: every channel from its smallest to its largest value becomes 0 to 1."""
    low, high = jnp.min(image, axis=(0, 1)), jnp.max(image, axis=(0, 1))
    return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1), image)


def _equalize(image: Array, strength: Array) -> Array:
    values = jnp.round(image * 255).astype(jnp.int32)

    def one(channel: Array) -> Array:
        below = jnp.cumsum(jnp.zeros(256).at[channel.ravel()].add(1))
        lowest = below[jnp.min(channel)]
        others = channel.size - lowest
        return jnp.where(others > 0, (below[channel] - lowest) / jnp.where(others > 0, others, 1), channel / 255)

    return jax.vmap(one, in_axes=2, out_axes=2)(values)


PHOTOMETRIC: dict[str, Callable[[Array, Array], Array]] = {
    "identity": lambda image, strength: image,
    "brightness": _blend(jnp.zeros_like),
    "contrast": _blend(lambda image: jnp.full_like(image, jnp.mean(_grey(image)))),
    "colour": _blend(_grey),
    "sharpness": _blend(_soft),
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _stretch,
    "equalize": _equalize,
}
"""``(image, strength) -> image``; the image is float[h, w, c]."""
