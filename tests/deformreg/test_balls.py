"""Balls against theory: projections, steepest directions and samples, on arrays and pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deformreg import l2, linf, pixelwise_l2
from deformreg.balls import scaled
from deformreg.testing import check_ball

pytestmark = pytest.mark.usefixtures("strict_promotion")

RADII = np.array([0.5, 0.0, 3.0], np.float32)
BALLS = {
    "linf": linf(0.75),
    "linf with a radius per component": linf(np.array([0.5, 2.0], np.float32)),
    "l2": l2(1.5),
    "l2 with a radius per example": l2(RADII),
    "pixelwise_l2": pixelwise_l2(0.75),
    "pixelwise_l2 with an array of radii": pixelwise_l2(np.array([0.75], np.float32)),
}
SHAPES = {"flow": (3, 2, 4, 2), "vector": (3, 2)}
SHARES = ("linf with a radius per component", "pixelwise_l2 with an array of radii")


def compiled(ball):
    return ball._replace(**{name: jax.jit(getattr(ball, name)) for name in ("norm", "project", "steepest", "sample")})


COMPILED = {name: compiled(ball) for name, ball in BALLS.items()}
balls = pytest.mark.parametrize("name", BALLS)


def size_by_hand(name, params):
    """The norm in float64 NumPy, from the definition."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)]
    if not name.startswith("l2"):
        lengths = [np.linalg.norm(leaf, axis=-1, keepdims=True) if "pixel" in name else np.abs(leaf) for leaf in leaves]
        radius = BALLS[name].radius if name in SHARES else 1.0
        return np.max([(length / radius).reshape(len(length), -1).max(1) for length in lengths], axis=0)
    return np.sqrt(sum((leaf**2).reshape(len(leaf), -1).sum(1) for leaf in leaves))


def limit(name):
    return 1.0 if name in SHARES else np.asarray(BALLS[name].radius)


def random_params(seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    return {key: (scale * rng.normal(size=shape)).astype(np.float32) for key, shape in SHAPES.items()}


def inner(a, b):
    """Inner products per example, in float64."""
    products = jax.tree.map(lambda x, y: (np.float64(x) * np.float64(y)).reshape(len(x), -1).sum(1), a, b)
    return sum(jax.tree.leaves(products))


def minus(a, b):
    return jax.tree.map(lambda x, y: np.float64(x) - np.float64(y), a, b)


finite = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
params_strategy = st.fixed_dictionaries(
    {key: hnp.arrays(np.float32, shape, elements=finite) for key, shape in SHAPES.items()}
)


@balls
def test_norms_match_numpy(name):
    params = random_params()
    expected = size_by_hand(name, params)
    if name == "l2 with a radius per example":  # for a radius of zero any length exceeds it
        with np.errstate(divide="ignore"):
            expected = expected / RADII
    np.testing.assert_allclose(COMPILED[name].norm(params), expected, rtol=1e-6)


@balls
@settings(deadline=None, max_examples=25, derandomize=True)
@given(params=params_strategy)
def test_a_projection_is_the_nearest_point_of_the_ball(name, params):
    ball = COMPILED[name]
    projected = ball.project(params)
    assert np.all(size_by_hand(name, projected) <= limit(name) * (1 + 1e-5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ball.project(projected), projected)
    # Optimality: no point q of the ball lies further along the residual, <params - projected, q - projected> <= 0.
    residual = minus(params, projected)
    slack = 1e-4 * np.sqrt(inner(params, params)) * (1 + np.sqrt(inner(projected, projected)))
    for seed in range(3):
        other = ball.project(random_params(seed, scale=10.0))
        assert np.all(inner(residual, minus(other, projected)) <= slack)


@balls
def test_the_laws_that_users_check_hold(name):
    check_ball(BALLS[name], random_params(), key=jax.random.key(0))


@balls
def test_the_steepest_direction_beats_every_point_of_the_unit_ball(name):
    gradient = random_params(1)
    ball = COMPILED[name]
    best = ball.steepest(gradient)
    unit = {"linf": linf, "l2": l2, "pixelwise_l2": pixelwise_l2}[name.split()[0]](1.0)
    np.testing.assert_allclose(unit.norm(best), 1.0, rtol=1e-5)
    for seed in range(20):
        other = unit.project(random_params(seed, scale=3.0))
        assert np.all(inner(gradient, other) <= inner(gradient, best) * (1 + 1e-5))


@balls
def test_a_zero_gradient_gives_no_direction(name):
    zeros = jax.tree.map(np.zeros_like, random_params())
    ball = COMPILED[name]
    for points in (ball.steepest(zeros), ball.project(zeros)):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(points))
    slopes = jax.grad(lambda params: jnp.sum(ball.norm(params)))(zeros)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


@balls
def test_samples_lie_in_the_ball_fill_it_and_follow_their_key(name):
    ball, params = COMPILED[name], random_params()
    draws = [ball.sample(jax.random.key(seed), params) for seed in range(30)]
    sizes = np.stack([size_by_hand(name, draw) for draw in draws])
    assert np.all(sizes <= limit(name) * (1 + 1e-5))
    assert np.all(sizes.max(0) >= 0.8 * limit(name))
    assert jax.tree.map(np.shape, draws[0]) == jax.tree.map(np.shape, params)
    again = ball.sample(jax.random.key(0), params)
    jax.tree.map(np.testing.assert_array_equal, draws[0], again)
    assert not np.array_equal(draws[0]["flow"], draws[1]["flow"])
    assert not np.array_equal(draws[0]["flow"][0], draws[0]["flow"][2])


def test_the_support_of_linf_is_the_l1_norm_and_of_pixels_the_sum_of_lengths():
    gradient = random_params(4)
    leaves = [np.abs(np.float64(leaf)) for leaf in gradient.values()]
    l1 = sum(leaf.reshape(3, -1).sum(1) for leaf in leaves)
    lengths = sum(np.linalg.norm(leaf, axis=-1).reshape(3, -1).sum(1) for leaf in leaves)
    np.testing.assert_allclose(linf(0.25).support(gradient), 0.25 * l1, rtol=1e-6)
    np.testing.assert_allclose(l2(0.25).support(gradient), 0.25 * np.sqrt(inner(gradient, gradient)), rtol=1e-6)
    np.testing.assert_allclose(pixelwise_l2(0.25).support(gradient), 0.25 * lengths, rtol=1e-6)


@balls
def test_the_support_of_no_gradient_has_derivative_zero(name):
    zeros = jax.tree.map(np.zeros_like, random_params())

    def derivative(gradient):
        return jax.grad(lambda leaves: BALLS[name].support(leaves).sum())(gradient)

    along = jax.tree.map(np.ones_like, zeros)
    first, second = jax.jit(lambda gradient: jax.jvp(derivative, (gradient,), (along,)))(zeros)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(first))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(second))


@pytest.mark.parametrize(("factory", "dimension"), [(l2, 6), (pixelwise_l2, 2)])
@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 1e-24), ("float32", 1e24), ("bfloat16", 1e-24), ("float16", 1e-4)]
)
def test_vectors_whose_squares_do_not_fit_the_type_have_lengths(factory, dimension, dtype, size):
    ball, leaf = factory(1.0), np.full((2, 3, 2), size, dtype)
    np.testing.assert_allclose(ball.norm(leaf), size * dimension**0.5, rtol=0.01)
    direction = ball.steepest(leaf)
    assert direction.dtype == ball.project(leaf).dtype == leaf.dtype
    np.testing.assert_allclose(np.float32(direction), dimension**-0.5, rtol=0.01)


def test_euclidean_samples_are_uniform():
    """In d dimensions, a share s^d of a uniform sample lies within s times the radius."""
    for ball, shape, dimension in ((l2(2.0), (4000, 3), 3), (pixelwise_l2(2.0), (1, 40, 100, 2), 2)):
        draw = np.asarray(ball.sample(jax.random.key(0), np.zeros(shape, np.float32))).reshape(4000, -1)
        lengths = np.linalg.norm(draw, axis=1)
        for share in (0.5, 0.8):
            assert abs((lengths < 2 * share).mean() - share**dimension) < 0.04
        assert np.abs(draw.mean(0)).max() < 0.1


@pytest.mark.parametrize("factory", [linf, l2, pixelwise_l2])
def test_a_ball_of_radius_zero_is_a_point(factory):
    ball, params = factory(0.0), random_params()
    for points in (ball.project(params), ball.sample(jax.random.key(0), params)):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(points))


@pytest.mark.parametrize(
    ("factory", "radius"), [(linf, 0.8), (linf, np.array([0.5, 2.0], np.float32)), (l2, RADII), (pixelwise_l2, 0.8)]
)
def test_a_scaled_ball_is_the_ball_of_the_scaled_radius(factory, radius):
    params, key = random_params(), jax.random.key(0)

    @jax.jit
    def both(share):  # traced, as in training
        balls = scaled(factory(radius), share), factory(radius * np.float32(0.25))
        return [
            (ball.norm(params), ball.project(params), ball.support(params), ball.sample(key, params)) for ball in balls
        ]

    found, expected = both(0.25)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
    projected = scaled(factory(radius), 0.0).project(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(projected))


@pytest.mark.parametrize("factory", [linf, l2, pixelwise_l2])
def test_balls_handle_an_empty_batch(factory):
    ball, empty = factory(1.0), np.zeros((0, 2, 2, 2), np.float32)
    assert ball.norm(empty).shape == (0,)
    for points in (ball.project(empty), ball.steepest(empty), ball.sample(jax.random.key(0), empty)):
        assert points.shape == empty.shape


@pytest.mark.parametrize("factory", [linf, l2, pixelwise_l2])
def test_negative_radii_are_named(factory):
    for radius, words in ((-1.0, "-1.0"), (np.array([1.0, -2.0]), "-2"), (float("nan"), "nan")):
        with pytest.raises(ValueError, match=rf"radius must be at least 0, got .*{words}"):
            factory(radius)
