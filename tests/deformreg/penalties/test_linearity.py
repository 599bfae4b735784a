"""Penalties of local linearity: what they are for linear and quadratic losses, over every family; errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformreg import additive, affine, flow, l2, linf, lowres_flow, pixelwise_l2
from deformreg.penalties import curvature_penalty, linearization_penalty, local_linearity_penalty
from deformreg.perturbations import pull_back

pytestmark = pytest.mark.usefixtures("strict_promotion")

SHAPE = (3, 5, 4, 2)
KEY = jax.random.key(0)
PENALTIES = {
    "local_linearity": functools.partial(local_linearity_penalty, key=KEY),
    "curvature": curvature_penalty,
    "linearization": functools.partial(linearization_penalty, key=KEY, num_steps=2),
}
penalties = pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES.keys())


def random_images(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).uniform(size=shape)


WEIGHTS = random_images(1)
FACTORS = random_images(2)


def linear(images):
    return jnp.sum(images * WEIGHTS, axis=(1, 2, 3))


def quadratic(images, scale=1.0):
    """Of the Hessian ``2 scale FACTORS``, a diagonal."""
    return scale * jnp.sum(FACTORS * images**2, axis=(1, 2, 3))


@penalties
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("has_aux", [False, True])
def test_penalties_of_a_loss_of_sixteen_bits_are_single_precision(penalty, dtype, has_aux):
    """As the other penalties; the losses stay what the function returned, and the same numbers in float32."""
    images = random_images().astype(np.float32)

    def halves(images):  # multiples of 1/2 below 128, which 16 bits hold, with the slopes of the quadratic loss
        losses = quadratic(images, 3.0).astype(jnp.float32)
        return losses + jax.lax.stop_gradient(jnp.round(2 * losses) / 2 - losses)

    def rounded(kind):
        loss_fn = lambda images: halves(images).astype(kind)  # noqa: E731
        return (lambda images: (loss_fn(images), None)) if has_aux else loss_fn

    (found, losses), (expected, same) = (
        penalty(rounded(kind), images, additive(), ball=linf(0.3), has_aux=has_aux) for kind in (dtype, np.float32)
    )
    losses, same = (value[0] if has_aux else value for value in (losses, same))
    assert (found.dtype, losses.dtype) == (jnp.float32, dtype)
    np.testing.assert_allclose(losses.astype(jnp.float32), same, rtol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@penalties
@pytest.mark.parametrize("ball", [linf(0.3), pixelwise_l2(0.3)], ids=lambda ball: ball.name)
def test_a_linear_loss_is_not_penalized(penalty, ball, float64):
    options = {"slope_weight": 0.0} if penalty is PENALTIES["linearization"] else {}
    call = functools.partial(penalty, linear, perturbation=additive(), ball=ball, **options)
    found, losses = jax.jit(call)(random_images())
    np.testing.assert_allclose(found, 0, atol=1e-12)
    np.testing.assert_allclose(losses, linear(random_images()), rtol=1e-12)


@pytest.mark.slow
def test_the_slope_of_a_linear_loss_is_penalized_at_a_point_of_the_ball(float64):
    found, _ = linearization_penalty(linear, random_images(), additive(), ball=linf(0.3), key=KEY, slope_weight=2.0)
    assert np.all(found > 0)
    assert np.all(found <= 2 * linf(0.3).support(WEIGHTS))


@pytest.mark.parametrize(
    ("family", "ball"),
    [
        pytest.param(additive(), l2(0.3), id="additive"),
        pytest.param(flow(), linf(0.3), id="flow"),
        pytest.param(flow(), pixelwise_l2(0.3), id="pixelwise", marks=pytest.mark.slow),
        pytest.param(affine(), linf(0.3), id="affine", marks=pytest.mark.slow),
    ],
)
def test_the_curvature_of_a_quadratic_loss_is_that_along_the_strongest_step(family, ball, float64):
    """``|A z|^2``, over families through their tangent."""

    @jax.jit
    def expected(images):
        slopes, push = jax.vjp(lambda leaf: pull_back(family, leaf, images), 2 * FACTORS * images)
        (along,) = push(jax.grad(lambda leaf: jnp.sum(ball.support(leaf)))(slopes))
        return jnp.sum(pull_back(family, 2 * FACTORS * along, images).reshape(3, -1) ** 2, axis=1)

    found, _ = jax.jit(lambda images: curvature_penalty(quadratic, images, family, ball=ball))(random_images())
    np.testing.assert_allclose(found, expected(random_images()), rtol=1e-9)


def test_the_curvature_of_any_loss_is_that_of_its_linear_part_removed(float64):
    images = random_images()
    plain, _ = curvature_penalty(quadratic, images, additive(), ball=linf(0.3))
    doubled, _ = curvature_penalty(lambda x: quadratic(x, 2.0) + 2 * linear(x), images, additive(), ball=linf(0.3))
    np.testing.assert_allclose(doubled, 4 * plain, rtol=1e-9)


def test_interpolation_of_a_quadratic_loss_has_the_error_of_its_hessian(float64):
    """For one pixel of Hessian 2: ``(t (1 - t) d^2)^2`` with uniform t and d, whose mean is 16 / 450 radius^4."""
    images, radius = np.zeros((5_000, 1, 1, 1)), 0.7

    @jax.jit
    def penalize(images):
        return local_linearity_penalty(
            lambda x: jnp.sum(x**2, axis=(1, 2, 3)), images, additive(), ball=linf(radius), key=KEY
        )[0]

    found = np.asarray(penalize(images)) / radius**4
    assert abs(found.mean() - 16 / 450) < 4 * found.std() / np.sqrt(found.size)
    assert found.max() <= 1  # at t = 1/2 and |d| = 2


@pytest.mark.slow
def test_interpolation_ignores_linear_parts_and_scales_with_the_fourth_power_of_the_radius(float64):
    images = random_images()

    def penalize(loss_fn, radius):
        return local_linearity_penalty(loss_fn, images, additive(), ball=l2(radius), key=KEY)[0]

    unit = penalize(quadratic, 1.0)
    np.testing.assert_allclose(penalize(lambda x: quadratic(x) + linear(x), 0.5), unit / 16, rtol=1e-9)
    np.testing.assert_allclose(penalize(lambda x: quadratic(x, 3.0), 1.0), 9 * unit, rtol=1e-9)


def test_the_worst_linearization_of_a_quadratic_loss_is_at_the_corners_of_the_cube(float64):
    found, _ = linearization_penalty(
        quadratic, random_images(), additive(), ball=linf(0.3), key=KEY, num_steps=20, slope_weight=0.0
    )
    np.testing.assert_allclose(found, 0.3**2 * FACTORS.sum((1, 2, 3)), rtol=1e-9)


@pytest.mark.slow
def test_the_worst_error_and_the_slope_bound_the_loss_under_attack(float64):
    """A convex loss is worst where its error is, so the bound holds for all points tried."""
    images, ball = random_images(), linf(0.3)
    slopes = 2 * FACTORS * images
    found, losses = linearization_penalty(
        quadratic, images, additive(), ball=ball, key=KEY, num_steps=20, slope_weight=0.0
    )
    for seed in range(5):
        params = ball.sample(jax.random.key(seed), slopes)
        attained = np.abs(np.sum(slopes * params, axis=(1, 2, 3)))
        assert np.all(quadratic(images + params) <= losses + attained + found)


@penalties
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(additive(), id="additive"),
        pytest.param(flow(), id="flow", marks=pytest.mark.slow),
        pytest.param(affine(), id="affine", marks=pytest.mark.slow),
        pytest.param(lowres_flow(2), id="low resolution", marks=pytest.mark.slow),
    ],
)
def test_the_derivative_along_a_scale_of_the_loss_is_that_of_its_power(penalty, family, float64):
    """The error of a linearization is proportional to the loss, the other penalties to its square."""
    images = random_images()

    @jax.jit
    def value_and_slopes(scale):
        def values(scale):
            return penalty(lambda x: quadratic(x, scale), images, family, ball=linf(0.1))[0]

        return values(scale), jax.vjp(values, scale)[1](jnp.array([1.0, 2.0, 4.0]))[0]

    values, slope = value_and_slopes(3.0)
    power = 1 if penalty is PENALTIES["linearization"] else 2
    assert np.all(values > 0)
    np.testing.assert_allclose(slope, power / 3.0 * values @ np.array([1.0, 2.0, 4.0]), rtol=1e-9)


@penalties
def test_compiled_with_auxiliary_outputs_of_the_clean_images_and_a_key_per_example(penalty):
    images = random_images().astype(np.float32)

    def loss_fn(images):
        return jnp.sum(jnp.sin(3 * images), axis=(1, 2, 3)), images.mean((1, 2, 3))

    call = functools.partial(penalty, loss_fn, perturbation=additive(), ball=linf(0.2), has_aux=True)
    found, (losses, means) = jax.jit(call)(images)
    assert np.all(found > 0)
    np.testing.assert_allclose(losses, loss_fn(images)[0], rtol=1e-5)
    np.testing.assert_allclose(means, images.mean((1, 2, 3)), rtol=1e-5)
    if "key" in getattr(penalty, "keywords", {}):
        last, _ = jax.jit(call)(images[2:], key=jax.random.split(KEY, 3)[2:])
        np.testing.assert_allclose(last, found[2:], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@penalties
def test_constant_images_and_empty_batches_have_finite_gradients(penalty):
    @jax.jit
    @jax.value_and_grad
    def value_and_slope(scale, images):
        return jnp.sum(penalty(lambda x: scale * jnp.sum(x**2, axis=(1, 2, 3)), images, ball=linf(0.2))[0])

    for images in (np.full(SHAPE, 0.5, np.float32), np.zeros((0, 3, 3, 1), np.float32)):
        value, slope = value_and_slope(1.0, images)
        assert np.isfinite(value)
        assert np.isfinite(slope)


@penalties
@pytest.mark.parametrize(
    ("loss_fn", "options", "error", "words"),
    [
        (jnp.sum, {}, ValueError, ["loss_fn", "(3,)", "()"]),
        (linear, {"ball": 0.1}, TypeError, ["ball", "Ball", "linf"]),
        (linear, {"perturbation": 1}, TypeError, ["perturbation"]),
        (linear, {"has_aux": True}, TypeError, ["(losses, aux)"]),
    ],
)
def test_what_does_not_fit_is_named(penalty, loss_fn, options, error, words):
    with pytest.raises(error) as caught:
        penalty(loss_fn, random_images().astype(np.float32), **{"ball": linf(0.1), **options})
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"ball": l2(np.ones(3))}, ValueError, "radius"),
        ({"key": 3}, TypeError, "key"),
        ({"num_steps": -1}, ValueError, "num_steps"),
        ({"slope_weight": -1.0}, ValueError, "slope_weight"),
        ({"step_size": -1.0}, ValueError, "step_size"),
    ],
)
def test_other_options_that_do_not_fit_are_named(options, error, word):
    with pytest.raises(error, match=word):
        linearization_penalty(linear, random_images().astype(np.float32), **{"ball": linf(0.1), "key": KEY, **options})
