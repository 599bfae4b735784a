"""The greedy attack: exact on what is linear in the pixels, across the kink that stops an ascent, within its budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import linear_model, perceptron

from deformreg import balls, cross_entropy, image_gradients
from deformreg.attacks import greedy, greedy_step, pgd
from deformreg.attacks.greedy import best_pixels
from deformreg.bounds import flow_bounds

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (3, 5, 6, 2))


@pytest.mark.parametrize("radius", [0.3, 1.0, 1.6])
def test_the_first_step_attains_the_bound_where_the_loss_is_linear_in_the_pixels(radius):
    logits_fn, weights = linear_model(IMAGES.shape[1:])
    labels = jnp.zeros(3, jnp.int32)
    clean = jnp.sum(IMAGES * weights, axis=(1, 2, 3))
    bound = flow_bounds(lambda images: jnp.sum(images * weights, axis=(1, 2, 3)), IMAGES, balls.linf(radius))
    attack = greedy(ball=balls.linf(radius), num_steps=2, loss="margin", keep="best")
    found = attack.run(logits_fn, IMAGES, labels, KEY)
    np.testing.assert_allclose(found.losses - clean, bound.displacement, rtol=1e-5)


def test_it_sees_both_sides_of_a_pixel():
    """The derivative at the identity looks to the right, where the middle pixel gains less than on its left."""
    images = jnp.array([1.0, 0.5, 0.6]).reshape(1, 1, 3, 1)

    def bright(images):
        return jnp.stack([jnp.full(len(images), 0.7), images[:, 0, 1, 0]], axis=1)

    options = {"loss": "margin", "keep": "best"}
    stuck = pgd(ball=balls.linf(0.5), num_steps=20, **options).run(bright, images, jnp.array([0]), KEY)
    found = greedy(ball=balls.linf(0.5), num_steps=2, **options).run(bright, images, jnp.array([0]), KEY)
    np.testing.assert_allclose(stuck.losses, 0.55 - 0.7, atol=1e-6)
    np.testing.assert_allclose(found.losses, 0.75 - 0.7, atol=1e-6)


def test_the_step_for_training_is_the_first_step_of_the_attack():
    logits_fn = perceptron(60)
    labels = jnp.argmax(logits_fn(IMAGES), axis=1)

    def loss_fn(images):
        return cross_entropy(logits_fn(images), labels)

    found = greedy_step(loss_fn, IMAGES, ball=balls.linf(0.4))
    np.testing.assert_allclose(jnp.abs(found.params).max(), 0.4)
    np.testing.assert_allclose(found.losses, loss_fn(found.images))
    attack = greedy(ball=balls.linf(0.4), num_steps=2, keep="best").run(logits_fn, IMAGES, labels, KEY)
    np.testing.assert_allclose(found.losses, attack.losses, rtol=1e-5)
    gains = jnp.sum(image_gradients(loss_fn, IMAGES)[0] * (found.images - IMAGES), axis=(1, 2, 3))
    np.testing.assert_allclose(gains, flow_bounds(loss_fn, IMAGES, balls.linf(0.4)).displacement, rtol=1e-5)


def test_the_most_profitable_pixels_move():
    gains = jnp.array([[[3.0, 0.0], [-1.0, 2.0]], [[1.0, 4.0], [3.0, 2.0]]])
    assert best_pixels(gains, jnp.array([0.5, 0.5])).astype(int).tolist() == [[[1, 0], [0, 1]], [[0, 1], [1, 0]]]
    assert best_pixels(gains, jnp.array([1.0, 0.01])).astype(int).tolist() == [[[1, 0], [0, 1]], [[0, 1], [0, 0]]]


def test_it_starts_again_where_no_pixel_is_left_to_move():
    """On a concave peak at the image nothing can be gained: after failures for all shares, random starts follow."""

    def peak(images):
        return jnp.stack([jnp.zeros(len(images)), -1 - jnp.sum(jnp.abs(images - IMAGES[:1]), axis=(1, 2, 3))], axis=1)

    seen = []

    def watched(images):
        jax.debug.callback(lambda logits: seen.append(float(logits[0, 1])), peak(images))
        return peak(images)

    greedy(ball=balls.linf(0.4), num_steps=12, keep="best").run(watched, IMAGES[:1], jnp.array([0]), KEY)
    jax.effects_barrier()
    assert seen[0] == -1
    # Thirty pixels, shares falling by 0.6: eight tries from the identity, and then a start of full size.
    assert min(seen) < -5


def test_the_radius_may_be_traced():
    logits_fn = perceptron(60)
    labels = jnp.argmax(logits_fn(IMAGES), axis=1)

    def run(radius):
        return greedy(ball=balls.linf(radius), num_steps=5, keep="best").run(logits_fn, IMAGES, labels, KEY)

    for radius in (0.4, 1.3):
        np.testing.assert_allclose(jax.jit(run)(radius).losses, run(radius).losses, rtol=1e-5)


def test_pixelwise_displacements_keep_their_length():
    logits_fn = perceptron(60)
    labels = jnp.argmax(logits_fn(IMAGES), axis=1)
    ball = balls.pixelwise_l2(0.4)
    found = greedy(ball=ball, num_steps=5, keep="best").run(logits_fn, IMAGES, labels, KEY)
    np.testing.assert_allclose(found.norms.max_displacement, 0.4, rtol=1e-5)


def test_other_balls_are_refused():
    with pytest.raises(ValueError, match="ball must bound every pixel, linf or pixelwise_l2, got l2"):
        greedy(ball=balls.l2(1.0))
    with pytest.raises(ValueError, match="keep"):
        greedy(ball=balls.linf(1.0), keep="last")
