"""A signal and a volume: penalty, attack and evaluation against brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformreg import evaluate, flow, gradient_penalty, linf
from deformreg.attacks import pgd, random_fields, square

RADIUS = 0.75
SHAPES = {"signals": (6, 1), "volumes": (2, 2, 3, 1)}


def linear_model(shape):
    weights = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    return weights, lambda images: jnp.sum(images * weights, axis=tuple(range(1, images.ndim)))


def neighbours(image, pixel, displacement):
    """The pixels that a displacement of less than one pixel leads to, with their shares; beyond the edge its pixel."""
    steps = np.sign(displacement).astype(int)
    for moved in itertools.product((0, 1), repeat=len(pixel)):
        share = np.prod([abs(d) if m else 1 - abs(d) for d, m in zip(displacement, moved, strict=True)])
        at = np.clip(np.add(pixel, np.multiply(moved, steps)), 0, np.subtract(image.shape[:-1], 1))
        yield share, image[tuple(at)][0]


def greatest_gain(image, weights):
    """The most that a flow within the radius raises the weighted sum of a one-channel image.

    A pixel's value is linear in each component between the grid points, so a best flow has components -r, 0 or r.
    """
    total = 0.0
    for pixel in np.ndindex(image.shape[:-1]):
        values = [
            sum(share * value for share, value in neighbours(image, pixel, displacement))
            for displacement in itertools.product((-RADIUS, 0.0, RADIUS), repeat=len(pixel))
        ]
        total += max(weights[pixel][0] * (value - image[pixel][0]) for value in values)
    return total


@pytest.mark.parametrize("kind", SHAPES)
def test_the_penalty_sums_the_forward_differences(kind):
    images = np.random.default_rng(0).random((3, *SHAPES[kind])).astype(np.float32)
    weights, score = linear_model(SHAPES[kind])
    penalties, losses = gradient_penalty(score, images)
    expected = np.zeros(3)
    for axis in range(1, images.ndim - 1):
        last = np.take(images, [-1], axis=axis)
        expected += ((np.diff(images, axis=axis, append=last) * weights) ** 2).reshape(3, -1).sum(axis=1)
    np.testing.assert_allclose(penalties, expected, rtol=1e-5)
    np.testing.assert_allclose(losses, score(images), rtol=1e-6)


@pytest.mark.parametrize("kind", ["signals", pytest.param("volumes", marks=pytest.mark.slow)])
def test_the_robust_accuracy_is_that_of_the_best_flows(kind):
    images = np.random.default_rng(0).random((8, *SHAPES[kind])).astype(np.float32)
    weights, score = linear_model(SHAPES[kind])
    gains = np.array([greatest_gain(image, weights) for image in images])
    # Half of the examples stay right under their best flow, by a hair; the others fall well within the radius.
    gaps = np.where(np.arange(8) % 2, 1.01, 0.6) * gains
    needed = np.asarray(score(images)) + gaps
    # The last pixel of the second channel tells an example's own offset; constant channels cannot be deformed.
    images = np.concatenate([images, np.broadcast_to(needed.reshape(-1, *[1] * (images.ndim - 1)), images.shape)], -1)

    def logits_fn(images):
        offsets = images[..., 1].reshape(len(images), -1)[:, 0]
        gap = offsets - score(images[..., :1])
        return jnp.stack([gap, jnp.zeros_like(gap)], axis=1)

    family = flow(within=RADIUS)
    attacks = [
        pgd(ball=linf(RADIUS), num_steps=20, restarts=3, keep="any", perturbation=family),
        square(ball=linf(RADIUS), num_queries=200),
        random_fields(ball=linf(RADIUS), num_fields=20, sigma=1.0),
    ]
    found = evaluate(logits_fn, images, np.zeros(8, int), attacks, key=jax.random.key(0), diagnosis=False)
    np.testing.assert_array_equal(found.correct_mask, True)
    np.testing.assert_array_equal(found.standing_mask, np.arange(8) % 2 == 1)
    assert found.robust_accuracy == 0.5


@pytest.mark.parametrize("shape", [(4, 2, 100), (4, 1, 24), (4, 3, 24, 32, 32), (4, 3, 4, 32, 32), (4, 1, 9, 24, 24)])
def test_layouts_that_look_wrong_are_refused(shape):
    images = np.random.default_rng(0).random(shape).astype(np.float32)
    with pytest.raises(ValueError, match=r"must have shape \[n, (t|d, h, w), c\], got .* which looks like") as caught:
        gradient_penalty(lambda images: images.reshape(len(images), -1).sum(axis=1), images)
    assert "\n" not in str(caught.value)


def test_one_image_without_its_batch_gets_no_flow_of_signals():
    with pytest.raises(ValueError, match=r"images must have shape \[n, h, w, c\] \(signals \[n, t, c\], volumes"):
        gradient_penalty(jnp.sum, np.zeros((4, 4), np.float32))
