"""RandAugment: which changes it may make."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.data import Augmentation, augment
from train.data.rand import rand
from train.data.trivial import GEOMETRIC, PHOTOMETRIC, change

COUNT = len(GEOMETRIC) + len(PHOTOMETRIC)
IMAGE = np.random.default_rng(0).uniform(size=(12, 10, 3)).astype(np.float32)


def neighbours(images, strength):
    """What one operation to either side makes of the images."""
    many = jnp.repeat(images, 2 * COUNT, axis=0)
    operations, signs = jnp.tile(jnp.arange(COUNT), 2 * len(images)), jnp.repeat(jnp.array([-1.0, 1.0]), COUNT)
    return jax.jit(change)(many, operations, jnp.tile(strength * signs, len(images)))


@pytest.mark.slow
def test_images_come_from_operations_of_one_strength_in_turn():
    keys = jax.random.split(jax.random.key(0), 100)
    images = jnp.broadcast_to(IMAGE, (100, *IMAGE.shape))
    reached = neighbours(IMAGE[None], 0.4)
    for count in (1, 2):
        found = np.asarray(jax.jit(partial(rand, count=count, strength=0.4))(keys, images)).reshape(100, -1)
        distances = np.abs(found[:, None] - np.asarray(reached).reshape(1, len(reached), -1)).max(-1)
        assert distances.min(1).max() < 1e-5
        assert len(np.unique(distances.argmin(1))) > 15
        reached = neighbours(reached, 0.4)


@pytest.mark.slow
def test_an_example_is_changed_by_its_own_key_beside_the_other_options():
    images = jnp.broadcast_to(jnp.round(IMAGE * 255).astype(jnp.uint8), (32, *IMAGE.shape))
    options = Augmentation(flip=True, rand=2, rand_strength=0.5)
    step = jax.jit(partial(augment, options=options))
    whole = step(jax.random.key(1), images)
    part = step(jax.random.key(1), images[20:], positions=jnp.arange(20, 32))
    np.testing.assert_allclose(part, whole[20:], atol=1e-6)
    assert np.all((whole >= -1e-6) & (whole <= 1 + 1e-6))
