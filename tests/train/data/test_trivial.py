"""TrivialAugment: what each operation does to images of which it is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.data.trivial import GEOMETRIC, PHOTOMETRIC, change, trivial

OPERATIONS = (*GEOMETRIC, *PHOTOMETRIC)
IMAGES = np.random.default_rng(0).uniform(size=(15, 12, 10, 3)).astype(np.float32)
changed = jax.jit(change)


def under(name, strength, image=IMAGES[0]):
    """One image under one operation, run together with all others."""
    images = jnp.broadcast_to(image, (len(OPERATIONS), *image.shape))
    found = changed(images, jnp.arange(len(OPERATIONS)), jnp.full(len(OPERATIONS), strength))
    return np.asarray(found[OPERATIONS.index(name)])


def test_there_are_the_fourteen_of_the_paper():
    assert len(OPERATIONS) == 14


@pytest.mark.parametrize(
    "name", [name for name in OPERATIONS if name not in ("autocontrast", "equalize", "posterize", "solarize")]
)
def test_without_strength_an_image_stays(name):
    np.testing.assert_allclose(under(name, 0.0), IMAGES[0], atol=1e-6)


def test_moves_are_those_of_the_paper():
    image = np.zeros((32, 32, 3), np.float32)
    image[16, 12] = 1
    # Ten of 32 pixels at full strength.
    assert np.argwhere(under("shift_x", 1.0, image)[..., 0]).tolist() == [[16, 2]]
    assert np.argwhere(under("shift_y", -1.0, image)[..., 0] > 0.5).tolist() == [[26, 12]]
    ramp = np.broadcast_to(np.arange(32, dtype=np.float32)[:, None, None] / 31, (32, 32, 3))
    sheared = under("shear_y", 1.0, ramp)[10:20, 10:20, 0]
    np.testing.assert_allclose(np.diff(sheared, axis=1), 0.3 / 31, rtol=1e-3)
    turned = under("rotation", 1.0, ramp)[12:20, 12:20, 0]
    np.testing.assert_allclose(np.diff(turned, axis=1), 0.5 / 31, rtol=1e-3)  # the sine of 30 degrees
    np.testing.assert_allclose(np.diff(turned, axis=0), 0.75**0.5 / 31, rtol=1e-3)


def test_colours_are_those_of_the_definitions():
    image = IMAGES[0].astype(np.float64)
    grey = image @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(under("brightness", -0.5), 0.55 * image, rtol=1e-5)
    np.testing.assert_allclose(under("contrast", -1.0), 0.9 * grey.mean() + 0.1 * image, rtol=1e-5)
    np.testing.assert_allclose(under("colour", -1.0), 0.9 * grey[..., None] + 0.1 * image, rtol=1e-5)
    np.testing.assert_allclose(under("solarize", -0.25), np.where(image > 0.75, 1 - image, image), rtol=1e-5)
    low, high = image.min((0, 1)), image.max((0, 1))
    np.testing.assert_allclose(under("autocontrast", 0.3), (image - low) / (high - low), atol=1e-5)
    assert len(np.unique(under("posterize", 1.0))) <= 16
    ranks = np.stack(
        [np.argsort(np.argsort(np.round(image[..., c] * 255).ravel(), kind="stable")) for c in range(3)], -1
    )
    np.testing.assert_allclose(under("equalize", 0.3).reshape(-1, 3), ranks / (ranks.max() or 1), atol=0.05)
    softer, sharper = (under("sharpness", strength) for strength in (-1.0, 1.0))
    assert softer[1:-1, 1:-1].std() < image[1:-1, 1:-1].std() < sharper[1:-1, 1:-1].std()


def test_constant_images_stay_finite_and_in_range():
    for value in (0.0, 0.5, 1.0):
        for name in OPERATIONS:
            found = under(name, 0.7, np.full((12, 10, 1), value, np.float32))
            assert np.all((found >= 0) & (found <= 1)), name


@pytest.mark.slow
def test_every_operation_is_drawn_from_the_examples_own_key():
    images = jnp.broadcast_to(IMAGES[0], (200, *IMAGES.shape[1:]))
    keys = jax.random.split(jax.random.key(0), 200)
    found = np.asarray(jax.jit(trivial)(keys, images))
    assert np.all((found >= -1e-6) & (found <= 1 + 1e-6))
    unchanged = np.all(np.abs(found - IMAGES[0]) < 1e-6, axis=(1, 2, 3)).mean()
    assert 0.02 < unchanged < 0.2  # the identity, and weak solarizations
    last = np.asarray(jax.jit(trivial)(keys[150:], images[150:]))
    np.testing.assert_allclose(last, found[150:], atol=1e-6)
