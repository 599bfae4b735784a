"""The displacement penalty: what it is by brute force, by the bound and by the greedy step, and its derivative."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deformreg
from deformreg import gradient_penalty, linf
from deformreg.bounds import flow_bounds
from deformreg.penalties import displacement_penalty

pytestmark = pytest.mark.usefixtures("strict_promotion")

IMAGES = np.random.default_rng(0).uniform(size=(3, 4, 5, 2))
WEIGHTS = np.random.default_rng(1).normal(size=(40, 6)) / 6


def loss_fn(images, weights=WEIGHTS):
    return jnp.sum(jnp.tanh(images.reshape(len(images), -1) @ weights), axis=1)


@pytest.mark.parametrize(
    ("radius", "boundary"), [(0.0, "edge"), (0.3, "edge"), (1.0, "zeros"), (1.4, "edge"), (1.4, "reflect")]
)
def test_it_is_the_largest_increase_over_a_fine_grid_of_displacements(float64, radius, boundary):
    gradients, _ = deformreg.image_gradients(loss_fn, IMAGES)
    # Bilinear interpolation is largest at whole pixels and at the border of the box: the grid holds both.
    places = sorted({*np.linspace(-radius, radius, 9), *(place for place in (-1.0, 0.0, 1.0) if abs(place) <= radius)})
    gains = []
    for offset in itertools.product(places, repeat=2):
        moved = deformreg.warp(IMAGES, np.broadcast_to(np.array(offset), (3, 4, 5, 2)), boundary=boundary)
        gains.append(jnp.sum(gradients * (moved - IMAGES), axis=-1))
    expected = jnp.sum(jnp.max(jnp.stack(gains), axis=0), axis=(1, 2)) ** 2
    found, losses = jax.jit(lambda images: displacement_penalty(loss_fn, images, radius, boundary=boundary))(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-20)
    np.testing.assert_allclose(losses, loss_fn(IMAGES), rtol=1e-12)


@pytest.mark.parametrize(
    "shape", [(2, 5, 4, 2), *(pytest.param(one, marks=pytest.mark.slow) for one in [(2, 7, 1), (2, 3, 4, 2, 1)])]
)
def test_it_is_the_square_of_the_bound(float64, shape):
    images = np.random.default_rng(2).uniform(size=shape)
    weights = np.random.default_rng(3).normal(size=(int(np.prod(shape[1:])), 3))
    found, _ = displacement_penalty(lambda some: loss_fn(some, weights), images, 0.6)
    bound = flow_bounds(lambda some: loss_fn(some, weights), images, linf(0.6)).displacement
    np.testing.assert_allclose(found, bound**2, rtol=1e-12)


def test_of_a_linear_loss_it_is_what_the_greedy_step_gains(float64):
    weights = np.random.default_rng(4).normal(size=(1, *IMAGES.shape[1:]))

    def linear(images):
        return jnp.sum(images * weights, axis=(1, 2, 3))

    moved = deformreg.greedy_step(linear, IMAGES, ball=linf(0.4)).images
    found, losses = displacement_penalty(linear, IMAGES, 0.4)
    np.testing.assert_allclose(found, (linear(moved) - losses) ** 2, rtol=1e-10)


def test_of_a_signal_that_rises_evenly_it_is_the_squared_dual_norm(float64):
    """But at its ends, where only one side has a slope."""
    signals = np.arange(8.0)[None, :, None] / 3
    inner = np.random.default_rng(5).normal(size=8) * (np.arange(8) % 7 > 0)

    def linear(signals):
        return signals[..., 0] @ inner

    dual, _ = gradient_penalty(linear, signals, size=linf(0.7).support)
    np.testing.assert_allclose(displacement_penalty(linear, signals, 0.7)[0], dual**2, rtol=1e-12)


@pytest.mark.parametrize("argument", ["weights", "images"])
def test_its_derivative_is_that_of_differences(float64, argument):
    direction = np.random.default_rng(6).normal(size=(WEIGHTS if argument == "weights" else IMAGES).shape)

    def along(step):
        images = IMAGES + step * direction if argument == "images" else IMAGES
        weights = WEIGHTS + step * direction if argument == "weights" else WEIGHTS
        return jnp.sum(displacement_penalty(lambda some: loss_fn(some, weights), images, 0.5)[0])

    numeric = (along(1e-5) - along(-1e-5)) / 2e-5
    np.testing.assert_allclose(jax.jit(jax.grad(along))(0.0), numeric, rtol=1e-6)


@pytest.mark.parametrize("factor", [600.0, 2e-4])
def test_its_square_fits_where_sixteen_bits_would_not(factor):
    step = jnp.array([0.0, 1.0], jnp.float16).reshape(1, 1, 2, 1)
    found, _ = displacement_penalty(lambda images: factor * images[:, 0, 0, 0], step, 0.5)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, (factor / 2) ** 2, rtol=2e-3)


@pytest.mark.slow
def test_a_traced_radius_and_aux():
    def with_aux(images):
        return loss_fn(images), images.mean()

    images = IMAGES.astype(np.float32)
    found, (losses, mean) = jax.jit(lambda radius: displacement_penalty(with_aux, images, radius, has_aux=True))(0.5)
    np.testing.assert_allclose(found, displacement_penalty(loss_fn, images, 0.5)[0], rtol=1e-5)
    assert losses.shape == (3,)
    np.testing.assert_allclose(mean, images.mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("radius", "error", "message"),
    [
        (-0.1, ValueError, "radius must be at least 0"),
        (np.inf, ValueError, "radius must be"),
        (np.array([0.1, 0.2, 0.3]), ValueError, "radius must be one number"),
        ("0.5", TypeError, "radius"),
    ],
)
def test_a_radius_that_is_none_is_named(radius, error, message):
    with pytest.raises(error, match=message):
        displacement_penalty(loss_fn, IMAGES.astype(np.float32), radius)
