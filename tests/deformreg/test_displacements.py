"""Displaced images are slices of padded ones where the displacement is short, with the values of warps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformreg import _displacements, linf, pixelwise_l2
from deformreg._displacements import best_displacements
from deformreg.bounds import reachable_change


def drawn(shape, dtype):
    draws = [jax.random.normal(jax.random.key(number), shape) for number in range(3)]
    return [draw.astype(dtype) for draw in draws]


CASES = {
    **{f"images, {boundary}": ((3, 5, 6, 3), linf(1.7), boundary) for boundary in ("edge", "zeros", "reflect")},
    "signals": ((2, 7, 2), linf(1.7), "reflect"),
    "volumes": ((2, 3, 4, 5, 1), linf(0.3), "zeros"),
    "many channels": ((2, 5, 4, 6), pixelwise_l2(1.0), "edge"),
}


@pytest.mark.parametrize(("shape", "ball", "boundary"), CASES.values(), ids=CASES)
def test_slices_have_the_values_of_warps(monkeypatch, shape, ball, boundary):
    images, values, gradients = drawn(shape, jnp.float32)
    sliced = best_displacements(images, values, gradients, ball, boundary)
    change = reachable_change(images, ball.radius, boundary=boundary)
    monkeypatch.setattr(_displacements, "LONGEST_SLICED", 0)
    warped = best_displacements(images, values, gradients, ball, boundary)
    np.testing.assert_array_equal(sliced[1], warped[1])
    np.testing.assert_allclose(sliced[0], warped[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(change, reachable_change(images, ball.radius, boundary=boundary), rtol=1e-5, atol=1e-6)


def test_slices_are_rounded_to_16_bits_as_warps_are(monkeypatch):
    images = drawn((3, 5, 6, 1), jnp.bfloat16)[0]
    change = reachable_change(images, 0.3)
    assert change.dtype == jnp.bfloat16
    monkeypatch.setattr(_displacements, "LONGEST_SLICED", 0)
    np.testing.assert_array_equal(change, reachable_change(images, 0.3))


@pytest.mark.parametrize("radius", [0.3, 8.0, 8.5])
def test_a_traced_radius_gives_the_same(radius):
    images, values, gradients = drawn((2, 3, 10, 1), jnp.float32)
    known = best_displacements(images, values, gradients, linf(radius), "edge")
    traced = jax.jit(lambda size: best_displacements(images, values, gradients, linf(size), "edge"))(radius)
    np.testing.assert_array_equal(known[1], traced[1])
    np.testing.assert_allclose(known[0], traced[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("boundary", ["edge", "zeros", "reflect"])
@pytest.mark.parametrize("traced", [False, True])
def test_displacements_beyond_the_image_are_left_out(boundary, traced):
    """All that a long displacement reads, a shorter one reads, too; so a large radius needs no more tries."""
    images = drawn((2, 5, 10, 2), jnp.float32)[0]
    radius = jnp.asarray(1000.0) if traced else 1000.0

    def count(so_far, displaced, number):
        return so_far + 1

    tried = _displacements.over_displacements(images, linf(radius), boundary, count, jnp.zeros(2, jnp.int32))
    assert tried.tolist() == [11 * 21] * 2
    values = images if boundary != "zeros" else jnp.pad(images, [(0, 0), (0, 1), (0, 1), (0, 0)])
    low, high = (find(values, axis=(1, 2), keepdims=True) for find in (jnp.min, jnp.max))
    farthest = jnp.maximum(high - images, images - low)
    np.testing.assert_allclose(reachable_change(images, radius, boundary=boundary), farthest, rtol=1e-6)
