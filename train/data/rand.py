"""RandAugment: some random changes to a training image, one after the other, all of one strength.

References:
    Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", NeurIPS 2020. The
    operations and their ranges are those of TrivialAugment here (`train.data.trivial`): the same fourteen, of which
    the largest shift is 10/32 of the side.
"""

from __future__ import annotations

import jax
from jax import Array

from train.data.trivial import GEOMETRIC, PHOTOMETRIC, change


def rand(keys: Array, images: Array, count: int, strength: float) -> Array:
    """Changes every image by random operations in turn, each as likely, to either side with the same strength.

    Args:
        keys: one random key per example.
        images: float[n, h, w, c] in [0, 1].
        count: number of operations.
        strength: of each, in (0, 1]; 1 is the largest of an operation's range.

    Returns:
        The changed images, in [0, 1].
    """

    def draw(key: Array) -> tuple[Array, Array]:
        operation_key, side_key = jax.random.split(key)
        operations = jax.random.randint(operation_key, (count,), 0, len(GEOMETRIC) + len(PHOTOMETRIC))
        return operations, strength * jax.random.rademacher(side_key, (count,), images.dtype)

    operations, strengths = jax.vmap(draw, out_axes=1)(keys)
    # A scan compiles the fourteen operations once, however many are drawn.
    changed, _ = jax.lax.scan(lambda images, each: (change(images, *each), None), images, (operations, strengths))
    return changed
