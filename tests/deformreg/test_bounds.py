"""Bounds of the loss's increase: closed forms on linear and quadratic losses, brute force over displacements."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformreg import additive, affine, bounds, flow, l2, linf, lowres_flow, pixelwise_l2, warp

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(KEY, (3, 4, 5, 2))
WEIGHTS = jax.random.normal(jax.random.key(1), IMAGES.shape[1:])
PIXELS = (1, 2, 3)


def linear(images):
    return jnp.sum(WEIGHTS * images, axis=PIXELS)


def quadratic(images):
    return linear(images) + jnp.sum(WEIGHTS * images, axis=PIXELS) ** 2


@pytest.mark.parametrize("ball", [linf(0.3), l2(0.3), pixelwise_l2(0.3), l2(jnp.array([0.1, 0.2, 0.3]))])
@pytest.mark.parametrize("family", [flow(), affine(), lowres_flow(2), additive()])
def test_no_point_of_the_ball_ascends_a_linear_function_more(ball, family):
    gradients = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(2), leaf.shape), family.init(IMAGES))
    bound = bounds.steepest_increase(gradients, ball)

    def value(params):
        return sum(
            jnp.sum(a * b, axis=tuple(range(1, a.ndim))) for a, b in zip(*map(jax.tree.leaves, params), strict=True)
        )

    points = [ball.sample(jax.random.key(draw), gradients) for draw in range(20)]
    assert max(float(jnp.max(value((gradients, point)) - bound)) for point in points) <= 1e-5
    far = jax.tree.map(lambda leaf: 1e4 * leaf, ball.steepest(gradients))
    np.testing.assert_allclose(value((gradients, ball.project(far))), bound, rtol=1e-4)


def test_the_bound_of_a_linear_loss_under_additive_noise_is_attained():
    bound, losses = bounds.first_order_bound(linear, IMAGES, linf(0.1), additive())
    worst = IMAGES + 0.1 * jnp.sign(WEIGHTS)
    np.testing.assert_allclose(bound, linear(worst) - losses, rtol=1e-5)


@pytest.mark.parametrize("boundary", ["edge", "zeros", "reflect"])
@pytest.mark.parametrize("radius", [0.4, 1.0, 1.7])
def test_the_reachable_change_is_that_of_a_fine_grid(radius, boundary):
    steps = np.linspace(-radius, radius, 35)  # 1.7 / 17: whole pixels are on the grid
    change = bounds.reachable_change(IMAGES, radius, boundary=boundary)
    moved = [
        jnp.abs(warp(IMAGES, jnp.broadcast_to(jnp.array(offset), (3, 4, 5, 2)), boundary=boundary) - IMAGES)
        for offset in itertools.product(steps.astype(np.float32), repeat=2)
    ]
    found = np.max(moved, axis=0)
    assert (found <= change + 1e-6).all()
    np.testing.assert_allclose(found, change, atol=0.02)


def test_the_displacement_bound_of_a_linear_loss_is_the_largest_increase():
    radius = 0.5
    found = bounds.flow_bounds(linear, IMAGES, linf(radius))
    steps = np.linspace(-radius, radius, 11).astype(np.float32)
    gains = [
        jnp.sum(WEIGHTS * (warp(IMAGES, jnp.broadcast_to(jnp.array(offset), (3, 4, 5, 2))) - IMAGES), axis=-1)
        for offset in itertools.product(steps, repeat=2)
    ]
    np.testing.assert_allclose(found.displacement, np.max(gains, axis=0).sum(axis=(1, 2)), rtol=1e-5)


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


def test_a_linear_loss_has_no_curvature():
    np.testing.assert_array_equal(bounds.largest_curvature(linear, IMAGES, num_steps=2, key=KEY), np.zeros(3))


@pytest.mark.parametrize(
    ("ball", "error", "words"),
    [
        (l2(0.5), ValueError, "ball must be linf or pixelwise_l2, got l2"),
        (linf(jnp.array([0.5, 0.1])), TypeError, "radius must be a number of pixels"),
        (0.5, TypeError, "ball"),
    ],
)
def test_unusable_balls_are_named(ball, error, words):
    with pytest.raises(error, match=words):
        bounds.flow_bounds(linear, IMAGES, ball)
