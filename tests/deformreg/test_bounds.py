"""Bounds of the loss's increase: closed forms on linear and quadratic losses, brute force over displacements."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformreg import additive, affine, bounds, flow, l2, linf, warp

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(KEY, (3, 4, 5, 2))
WEIGHTS = jax.random.normal(jax.random.key(1), IMAGES.shape[1:])
PIXELS = (1, 2, 3)


def linear(images):
    return jnp.sum(WEIGHTS * images, axis=PIXELS)


def quadratic(images):
    return linear(images) + jnp.sum(WEIGHTS * images, axis=PIXELS) ** 2


@jax.jit
def moved(offsets):
    """The images displaced as a whole by each of the offsets."""
    return jax.lax.map(lambda offset: warp(IMAGES, jnp.broadcast_to(offset, (3, 4, 5, 2)), boundary="edge"), offsets)


def grid(radius, count):
    steps = np.linspace(-radius, radius, count).astype(np.float32)
    return jnp.array(list(itertools.product(steps, repeat=2)))


@pytest.mark.parametrize("radius", [0.4, 1.0, 1.7])
def test_the_reachable_change_is_that_of_a_fine_grid(radius):
    change = bounds.reachable_change(IMAGES, radius)
    found = jnp.max(jnp.abs(moved(grid(radius, 35)) - IMAGES), axis=0)  # 1.7 / 17: whole pixels are on the grid
    assert (found <= change + 1e-6).all()
    np.testing.assert_allclose(found, change, atol=1e-5)


def test_the_displacement_bound_of_a_linear_loss_is_the_largest_increase():
    found = bounds.flow_bounds(linear, IMAGES, linf(0.5))
    gains = jnp.sum(WEIGHTS * (moved(grid(0.5, 11)) - IMAGES), axis=-1)
    np.testing.assert_allclose(found.displacement, jnp.max(gains, axis=0).sum(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "boundary", "radius"),
    [
        ((3, 7, 2), "reflect", 1.6),
        ((2, 4, 5, 1), "zeros", 1.6),
        ((2, 4, 5, 1), "edge", 0.0),
        pytest.param((2, 3, 4, 3, 1), "edge", 1.0, marks=pytest.mark.slow),
        ((2, 1, 1, 1), "zeros", 0.4),
        ((2, 1, 4, 1), "reflect", 2.3),
    ],
)
def test_bounds_are_the_largest_over_a_grid_for_every_rank_and_boundary(shape, boundary, radius):
    rng = np.random.default_rng(0)
    images, weights = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    rank = len(shape) - 2
    axes = tuple(range(1, rank + 2))
    steps = np.unique([*np.linspace(-radius, radius, 5), *np.arange(-int(radius), int(radius) + 1)])
    offsets = jnp.array(list(itertools.product(steps, repeat=rank)), jnp.float32)
    displaced = jax.lax.map(
        lambda offset: warp(images, jnp.broadcast_to(offset, (*shape[:-1], rank)), boundary=boundary), offsets
    )
    found = bounds.flow_bounds(lambda x: jnp.sum(weights * x, axis=axes), images, linf(radius), boundary=boundary)
    gains = jnp.max(jnp.sum(weights * (displaced - images), axis=-1), axis=0)
    np.testing.assert_allclose(found.displacement, jnp.sum(gains, axis=axes[:-1]), rtol=1e-5, atol=1e-6)
    change = bounds.reachable_change(images, radius, boundary=boundary)
    np.testing.assert_allclose(change, jnp.max(jnp.abs(displaced - images), axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.pixels, jnp.sum(jnp.abs(weights) * change, axis=axes), rtol=1e-5)
    assert (found.displacement >= 0).all()


def test_a_gradient_that_is_not_a_number_has_no_bound():
    factors = jnp.array([1.0, jnp.nan, 1.0])
    found = bounds.flow_bounds(lambda images: factors * linear(images), IMAGES, linf(0.5))
    for name, bound in found._asdict().items():
        assert np.isnan(bound).tolist() == [False, True, False], name


def test_bounds_of_a_confident_network_do_not_underflow():
    scales = jnp.array([1.0, -3.0]).reshape(1, 1, 2, 1)

    def found(factor):
        linear_bounds = bounds.flow_bounds(lambda images: factor * linear(images), IMAGES, linf(0.5))
        curvature = bounds.largest_curvature(
            lambda images: factor * (scales * images**2).sum((1, 2, 3)) / 2, jnp.ones((1, 1, 2, 1)), additive(),
            key=jax.random.key(0),
        )  # fmt: skip
        return [*linear_bounds, curvature]

    for small, usual in zip(found(1e-27), found(1.0), strict=True):
        np.testing.assert_allclose(small * 1e27, usual, rtol=1e-4)


@pytest.mark.usefixtures("float64")
def test_a_large_constant_does_not_hide_what_a_displacement_does():
    images = jnp.asarray(IMAGES, jnp.float64)
    plain, shifted = (bounds.flow_bounds(linear, images + offset, linf(0.5)).displacement for offset in (0.0, 1e6))
    np.testing.assert_allclose(shifted, plain, rtol=1e-6)


def test_bounds_of_sixteen_bit_images_are_sums_in_float32():
    rounded = IMAGES.astype(jnp.bfloat16)
    found = bounds.flow_bounds(linear, rounded, linf(0.3))
    expected = bounds.flow_bounds(linear, rounded.astype(jnp.float32), linf(0.3))
    for name, bound in found._asdict().items():
        assert bound.dtype == jnp.float32, name
        np.testing.assert_allclose(bound, getattr(expected, name), rtol=0.02, err_msg=name)


def test_small_gradients_of_half_precision_do_not_vanish():
    ramp = jnp.arange(6, dtype=jnp.float16).reshape(1, 1, 6, 1) / 100

    def loss(images):
        return 1e-6 * images.astype(jnp.float32).sum((1, 2, 3))

    found = bounds.flow_bounds(loss, ramp, linf(0.5))
    np.testing.assert_allclose(found.flow, found.displacement, rtol=0.01)
    assert found.flow > 0
    first, second = bounds.second_order_increase(lambda images: 100 * loss(images), ramp, ramp + jnp.float16(1e-4))
    np.testing.assert_allclose(first, 6e-8, rtol=0.1)
    np.testing.assert_allclose(second, first)


@pytest.mark.parametrize("family", [flow(), additive()])
@pytest.mark.parametrize("dtype", [jnp.float16, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_the_curvature_of_sixteen_bit_images(family, dtype):
    images = jnp.arange(8, dtype=dtype).reshape(1, 2, 4, 1) / 4
    found, expected = (
        bounds.largest_curvature(lambda images: (images**2).sum((1, 2, 3)), each, family, key=KEY)
        for each in (images, images.astype(jnp.float32))
    )
    np.testing.assert_allclose(found, expected, rtol=0.05)


@pytest.mark.slow
def test_the_radius_may_be_an_array_or_traced():
    expected = bounds.flow_bounds(linear, IMAGES, linf(1.2))
    for found in (
        bounds.flow_bounds(linear, IMAGES, linf(np.float32(1.2))),
        jax.jit(lambda radius: bounds.flow_bounds(linear, IMAGES, linf(radius)))(1.2),
        jax.tree.map(lambda leaf: leaf[1], jax.vmap(lambda radius: bounds.flow_bounds(linear, IMAGES, linf(radius)))(
            jnp.array([0.3, 1.2, 2.5])
        )),
    ):  # fmt: skip
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_black_borders_are_reached():
    ones = jnp.ones((1, 1, 3, 1))
    assert bounds.reachable_change(ones, 0.5, boundary="zeros").ravel().tolist() == [0.75, 0.5, 0.75]


def test_bounds_are_ordered():
    found = bounds.flow_bounds(quadratic, IMAGES, linf(0.5))
    assert (found.displacement <= found.pixels + 1e-5).all()
    assert (found.pixels <= found.euclidean + 1e-4).all()
    assert (found.pixels <= found.largest + 1e-4).all()
    np.testing.assert_allclose(found.losses, quadratic(IMAGES), rtol=1e-6)


def test_on_a_ramp_the_flow_bound_is_exact():
    ramp = jnp.arange(6.0).reshape(1, 1, 6, 1)
    found = bounds.flow_bounds(lambda images: images.sum(axis=PIXELS), ramp, linf(0.5))
    np.testing.assert_allclose(found.flow, [2.5])  # five pixels of slope 1, the last of slope 0
    np.testing.assert_allclose(found.displacement, [2.5])


def test_the_second_order_is_exact_for_a_quadratic_loss():
    attacked = IMAGES + 0.3 * jax.random.normal(jax.random.key(3), IMAGES.shape)
    first, second = bounds.second_order_increase(quadratic, IMAGES, attacked)
    np.testing.assert_allclose(second, quadratic(attacked) - quadratic(IMAGES), rtol=1e-4)
    assert not np.allclose(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("family", [flow(), additive(), affine(parameters=("dy", "dx"))])
def test_the_curvature_is_the_largest_eigenvalue_of_the_hessian(family):
    found = bounds.largest_curvature(quadratic, IMAGES, family, num_steps=30, key=KEY)
    for index in range(len(IMAGES)):
        image = IMAGES[index : index + 1]
        identity = family.init(image)
        tangent = jax.jacfwd(lambda params, image=image: family.apply(params, image))(identity)
        tangent = tangent.reshape(image.size, identity.size)
        hessian = tangent.T @ (2 * jnp.outer(WEIGHTS.ravel(), WEIGHTS.ravel())) @ tangent
        eigenvalues = np.linalg.eigvalsh(hessian)
        np.testing.assert_allclose(found[index], eigenvalues[np.abs(eigenvalues).argmax()], rtol=1e-3)


@pytest.mark.parametrize("eigenvalues", [(3.0, -2.9), (2.9, -3.0), (3.0, -3.0)])
def test_curvatures_of_both_signs_do_not_cancel(eigenvalues):
    scales = jnp.array(eigenvalues).reshape(1, 1, 2, 1)

    def saddle(images):
        return jnp.sum(scales * images**2, axis=(1, 2, 3)) / 2

    found = bounds.largest_curvature(saddle, jnp.zeros((3, 1, 2, 1)), additive(), key=KEY)
    assert (jnp.abs(found) >= 2.9).all()
    assert (jnp.abs(found) <= 3.0001).all()


def test_the_curvature_is_estimated_from_below():
    scales = jnp.full((1, 12, 12, 1), 0.9).at[0, 3, 3, 0].set(1.0)

    def bowl(images):
        return (scales * images**2).sum((1, 2, 3)) / 2

    found = [
        float(
            bounds.largest_curvature(
                bowl, jnp.ones((1, 12, 12, 1)), additive(), num_steps=steps, key=jax.random.key(0)
            )[0]
        )
        for steps in (5, 20, 200)
    ]
    assert found == sorted(found)
    assert found[1] < 0.99
    np.testing.assert_allclose(found[2], 1.0, rtol=1e-5)


def test_a_linear_loss_has_no_curvature():
    np.testing.assert_array_equal(bounds.largest_curvature(linear, IMAGES, num_steps=2, key=KEY), np.zeros(3))


@pytest.mark.parametrize(
    ("ball", "error", "words"),
    [
        (l2(0.5), ValueError, "ball must bound every pixel, linf or pixelwise_l2, got l2"),
        (linf(jnp.array([0.5, 0.1])), ValueError, "the ball's radius must be one number"),
        (0.5, TypeError, "ball"),
    ],
)
def test_unusable_balls_are_named(ball, error, words):
    with pytest.raises(error, match=words):
        bounds.flow_bounds(linear, IMAGES, ball)
