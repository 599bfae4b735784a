"""Noise laws: shape, law and determinism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from deformreg import noise, random_start

pytestmark = pytest.mark.usefixtures("strict_promotion")

PARAMS = {"a": np.zeros((4, 30, 40, 2), np.float32), "b": np.zeros((4, 900), np.float32)}


@pytest.mark.parametrize(
    ("law", "distribution"),
    [(noise.gaussian(0.2), stats.norm(0, 0.2)), (noise.uniform(0.5), stats.uniform(-0.5, 1.0))],
)
def test_the_components_follow_the_law_independently(law, distribution):
    draw = law(jax.random.key(0), PARAMS)
    assert jax.tree.map(np.shape, draw) == jax.tree.map(np.shape, PARAMS)
    for leaf in jax.tree.leaves(draw):
        assert stats.kstest(np.ravel(leaf), distribution.cdf).pvalue > 1e-3
    assert len(np.unique(draw["a"])) > 0.99 * draw["a"].size  # no repeated number: the examples differ
    assert abs(np.corrcoef(np.ravel(draw["a"])[:3600], np.ravel(draw["b"]))[0, 1]) < 0.1


def test_images_of_a_program_are_checked_as_others_are():
    images, bright = jnp.full((2, 3, 3, 1), 0.5), jnp.full((2, 3, 3, 1), 3.0)
    start = jax.jit(lambda key: random_start(key, images))(jax.random.key(0))
    np.testing.assert_allclose(start, random_start(jax.random.key(0), images), atol=1e-6)
    with pytest.raises(ValueError, match="image_range"):
        jax.jit(lambda key: random_start(key, bright))(jax.random.key(0))


@pytest.mark.parametrize(("dtype", "low"), [("bfloat16", -2.1179), ("float16", -2.1179), ("float32", -2.1179)])
def test_rounding_to_sixteen_bits_leaves_no_range(dtype, low):
    """Of standardized images, black and white are no numbers of 16 bits."""
    images = jnp.array([low, 2.64], dtype).reshape(1, 1, 2, 1)
    random_start(jax.random.key(0), images, image_range=(low, 2.64))
    with pytest.raises(ValueError, match="image_range"):
        random_start(jax.random.key(0), images + jnp.array(0.05, dtype), image_range=(low, 2.64))


@pytest.mark.parametrize("law", [noise.gaussian(0.2), noise.uniform(0.5)])
def test_a_draw_is_a_function_of_its_key(law):
    one, again, other = (law(jax.random.key(seed), PARAMS)["b"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("law", [noise.gaussian(0.0), noise.uniform(0.0)])
def test_no_width_no_noise(law):
    assert not np.any(law(jax.random.key(0), PARAMS)["b"])


def test_the_type_is_that_of_the_parameters():
    zeros = np.zeros((2, 3), jax.numpy.bfloat16)
    assert noise.gaussian(0.1)(jax.random.key(0), zeros).dtype == zeros.dtype
    assert noise.uniform(0.1)(jax.random.key(0), zeros).dtype == zeros.dtype


def test_negative_widths_are_named():
    with pytest.raises(ValueError, match="stddev must be at least 0, got -1"):
        noise.gaussian(-1)
    with pytest.raises(ValueError, match=r"radius must be at least 0, got -0\.5"):
        noise.uniform(-0.5)
