"""Relative stability: networks whose reaction is known, and the law of the fields."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformreg.evaluation.stability import relative_stability, smooth_fields

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(KEY, (6, 10, 12, 1))


def pixels(images):
    return images.reshape(len(images), -1)


def test_a_network_that_returns_the_pixels_reacts_alike():
    found = relative_stability(pixels, IMAGES, key=KEY, num_draws=2)
    assert found.ratio == pytest.approx(1, rel=1e-4)
    assert found.deformed == pytest.approx(found.noisy, rel=1e-4)


def test_a_network_that_averages_is_more_stable_to_deformations_and_one_that_differentiates_less():
    smooth = jnp.cumsum(jnp.cumsum(IMAGES - 0.5, axis=1), axis=2)

    def blurred(images):
        return pixels((images[:, :-1] + images[:, 1:]) / 2)

    def differences(images):
        return pixels(images[:, 1:] - images[:, :-1])

    assert relative_stability(differences, smooth, key=KEY).ratio < 1  # smooth images stay smooth, noise does not
    assert relative_stability(blurred, smooth, key=KEY).ratio > 1


def test_fields_have_length_one_and_the_spectrum_of_their_law():
    fields = np.asarray(smooth_fields(KEY, 500, 16, 16, cutoff=3))
    np.testing.assert_allclose((fields**2).sum(-1).mean(axis=(1, 2)), 1, rtol=1e-5)
    places = (np.arange(16) + 0.5) / 16
    waves = np.sin(np.pi * np.arange(1, 5)[:, None] * places)  # orthogonal
    power = (np.einsum("nhwk,ih,jw->nijk", fields, waves, waves) ** 2).mean(axis=(0, 3))
    assert (power[2:, 1:] < 1e-8).all()  # beyond the cutoff
    assert (power[3] < 1e-8).all()
    # The law's ratio is 2 / 5; scaling every field to one length draws it towards 1.
    assert 0.4 < power[0, 1] / power[0, 0] < 0.6
    assert power[0, 1] == pytest.approx(power[1, 0], rel=0.15)
    assert np.abs(fields[:, 0]).max() < np.abs(fields).max() / 3  # nearly still at the border


def test_half_precision_compares_images_whose_squares_overflow():
    images = jax.random.uniform(KEY, (1, 96, 96, 8), jnp.float16)  # noise of 73,728 values: squared length above 65,504
    found = relative_stability(pixels, images, key=KEY, num_draws=2)
    assert found.ratio == pytest.approx(1, rel=0.01)


def test_classes_that_are_masked_out_do_not_react():
    def masked(images):
        return jnp.pad(pixels(images), [(0, 0), (0, 3)], constant_values=-jnp.inf)

    found, plain = (relative_stability(each, IMAGES, key=KEY, num_draws=2) for each in (masked, pixels))
    assert found == pytest.approx(plain, rel=1e-6)


def test_logits_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="logits that are not finite"):
        relative_stability(lambda images: jnp.log(pixels(images) - 0.5), IMAGES, key=KEY)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"size": 0.0}, "size"), ({"cutoff": 1}, "cutoff"), ({"images": jnp.ones((2, 4, 4, 1))}, "do not change")],
)
def test_what_cannot_be_compared_is_named(changes, words):
    options = {"images": IMAGES, "key": KEY} | changes
    with pytest.raises(ValueError, match=words):
        relative_stability(pixels, options.pop("images"), **options)
