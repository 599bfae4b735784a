"""The greedy attack: exact on what is linear in the pixels, across the kink that stops an ascent, within its budget."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import linear_model, perceptron

from deformreg import balls, cross_entropy, image_gradients, warp
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


@pytest.mark.slow
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
    assert best_pixels(gains, jnp.array([1.0, 0.25])).astype(int).tolist() == [[[1, 0], [0, 1]], [[0, 1], [0, 0]]]
    assert not best_pixels(gains, jnp.array([0.2, 0.0])).any()


def test_no_more_pixels_move_than_the_share_where_gains_are_equal():
    gains = jnp.array([[1.0, 2.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    assert best_pixels(gains, jnp.array([0.6, 0.4, 0.8])).astype(int).tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
    ]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_pixels_that_move_are_the_first_of_a_sort(float64, dtype):
    gains = jax.random.normal(KEY, (40, 9, 7), dtype)
    gains = jnp.concatenate([gains, jnp.round(gains), 1e-40 * gains, jnp.full_like(gains, jnp.inf)])
    shares = jnp.tile(jnp.linspace(0, 1, 40), 4)
    for row, share, chosen in zip(np.asarray(gains), np.asarray(shares), best_pixels(gains, shares), strict=True):
        first = np.argsort(-row.ravel(), kind="stable")[: int(share * row.size)]
        expected = np.zeros(row.size, bool)
        expected[first] = True
        np.testing.assert_array_equal(chosen.ravel(), expected & (row.ravel() > 0))


def test_it_finds_the_share_of_equal_pixels_that_should_move():
    """Each of thirty pixels of the ramp gains half, and the loss is highest when they gain 4.5 together."""
    images = jnp.broadcast_to(jnp.arange(6.0).reshape(1, 1, 6, 1), (1, 6, 6, 1))
    goal = jnp.sum(images) + 4.5

    def peak(images):
        return jnp.stack([jnp.zeros(len(images)), -1 - jnp.abs(jnp.sum(images, axis=(1, 2, 3)) - goal)], axis=1)

    attack = greedy(ball=balls.linf(0.5), num_steps=30, loss="margin", keep="best")
    found = attack.run(peak, images, jnp.array([0]), KEY)
    assert found.losses.item() >= -1.5  # within one pixel


def watch(logits_fn):
    """The function, and a list of what all its calls see: how many pixels of the first image differ from `IMAGES`."""
    seen = []

    def watched(images):
        moved = jnp.sum(jnp.any(images[0] != IMAGES[0], axis=-1))
        jax.debug.callback(lambda moved: seen.append(int(moved)), moved, ordered=True)
        return logits_fn(images)

    return watched, seen


def peak_with_slope(slope):
    """At most -1, at the first image, from where every change of a pixel lowers it; there its gradient is `slope`."""

    def logits_fn(images):
        change = images - IMAGES[:1]
        heights = jnp.sum(slope * change - change * jnp.sign(change), axis=(1, 2, 3))  # the slope of abs at 0 is 1
        return jnp.stack([jnp.zeros(len(images)), -1 + heights], axis=1)

    return logits_fn


@pytest.mark.slow
def test_it_starts_again_at_once_where_nothing_can_be_gained():
    watched, seen = watch(peak_with_slope(0.0))
    for number in range(8):
        key = jax.random.key(number)
        greedy(ball=balls.linf(0.4), num_steps=2, keep="best").run(watched, IMAGES[:1], jnp.array([0]), key)
    jax.effects_barrier()
    assert seen[::2] == [0] * 8
    near, far = ([moved for moved in seen[1::2] if (moved > 20) == high] for high in (False, True))
    assert near
    assert far
    assert max(near) < 10  # of 30, about a tenth
    assert min(far) > 25


def test_after_failures_fewer_pixels_move_until_it_starts_again():
    watched, seen = watch(peak_with_slope(0.1))
    attack = greedy(ball=balls.linf(0.4), num_steps=14, loss="margin", keep="best")
    found = attack.run(watched, IMAGES[:1], jnp.array([0]), KEY)
    jax.effects_barrier()
    most, *fewer, again = seen[1:]
    assert seen[0] == 0
    assert 18 <= most <= 30  # those that gain something
    assert all(0 < moved <= int(30 * 0.75**failures) for failures, moved in enumerate(fewer, start=1))
    assert fewer[-1] == int(30 * 0.75 ** len(fewer)) == 1
    assert again > 1  # a tenth or all
    np.testing.assert_array_equal(found.params, 0)


def test_a_failure_tells_which_pixels_turn_down_on_the_way():
    """Of four dark pixels, which can only brighten, three rise faster than the first one, and then fall."""
    images = jnp.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]).reshape(1, 1, 9, 1)
    slope = jnp.array([0.0, 1.0, 0.0, 1.1, 0.0, 1.1, 0.0, 1.1, 0.0]).reshape(1, 1, 9, 1)

    def logits_fn(images):
        heights = slope * images - jnp.where(slope > 1, 6.0, 0.0) * images**2  # 0.55 - 1.5 at half a pixel
        return jnp.stack([jnp.zeros(len(images)), -10 + jnp.sum(heights, axis=(1, 2, 3))], axis=1)

    attack = greedy(ball=balls.linf(0.5), num_steps=3, loss="margin", keep="best")
    found = attack.run(logits_fn, images, jnp.array([0]), KEY)
    np.testing.assert_allclose(found.losses, -10 + 0.5, atol=1e-6)


@pytest.mark.slow
def test_model_calls_are_those_that_the_model_sees():
    logits_fn = perceptron(60)
    labels = jnp.argmax(logits_fn(IMAGES), axis=1)
    for number, steps in ((0, 1), (1, 7), (2, 40)):
        watched, seen = watch(logits_fn)
        one = slice(number, number + 1)
        found = greedy(ball=balls.linf(0.3), num_steps=steps).run(watched, IMAGES[one], labels[one], KEY)
        jax.effects_barrier()
        assert found.model_calls.tolist() == [len(seen)]
        assert len(seen) <= steps
        assert bool(found.success[0]) or len(seen) == steps


@pytest.mark.slow
def test_more_steps_never_find_less():
    logits_fn = perceptron(60)
    labels = jnp.argmax(logits_fn(IMAGES), axis=1)
    for ball in (balls.linf(0.2), balls.pixelwise_l2(1.3)):
        found = [
            greedy(ball=ball, num_steps=steps, loss="margin", keep="best").run(logits_fn, IMAGES, labels, KEY).losses
            for steps in (1, 2, 4, 9, 20)
        ]
        assert (np.diff(found, axis=0) >= 0).all()
        np.testing.assert_allclose(found[0], pgd(ball=ball, num_steps=0, loss="margin").run(
            logits_fn, IMAGES, labels, KEY).losses, rtol=1e-6)  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "boundary", "radius"),
    [
        ((1, 5, 1), "zeros", 1.4),
        ((1, 2, 3, 1), "edge", 0.6),
        pytest.param((1, 2, 3, 1), "reflect", 1.4, marks=pytest.mark.slow),
        pytest.param((1, 2, 2, 2, 1), "zeros", 0.6, marks=pytest.mark.slow),
        ((1, 1, 1, 1), "edge", 0.6),
        ((1, 1, 1, 1), "zeros", 1.4),
    ],
)
def test_no_displacements_of_the_grid_beat_the_step_on_a_linear_loss(shape, boundary, radius):
    """Pixels do not interact in a linear loss: the best of each over a fine grid is the best of all."""
    rng = np.random.default_rng(len(shape))
    images, weights = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    rank = len(shape) - 2
    steps = np.unique([*np.linspace(-radius, radius, 9), -1, 0, 1]) if radius > 1 else np.linspace(-radius, radius, 9)
    offsets = np.array(list(itertools.product(steps, repeat=rank)), np.float32)

    @jax.jit
    def moved(offset):
        return weights * warp(images, jnp.broadcast_to(offset, (*shape[:-1], rank)), boundary=boundary)

    def loss_fn(images):
        return jnp.sum(weights * images, axis=tuple(range(1, rank + 2)))

    best = np.sum(np.max([moved(offset) for offset in offsets], axis=0), axis=tuple(range(1, rank + 2)))
    found = greedy_step(loss_fn, images, ball=balls.linf(radius), boundary=boundary)
    np.testing.assert_allclose(found.losses, best, rtol=1e-5, atol=1e-5)
    # In the ball of lengths, the displacements along axes and diagonals are no better, each pixel having its own.
    shorter = greedy_step(loss_fn, images, ball=balls.pixelwise_l2(radius), boundary=boundary)
    assert (balls.pixelwise_l2(radius).norm(shorter.params) <= radius * (1 + 1e-6)).all()
    signs = np.array([each for each in itertools.product((-1, 0, 1), repeat=rank) if any(each)], np.float32)
    others = radius * signs / np.sqrt(np.sum(signs**2, axis=1, keepdims=True))
    best = np.sum(np.max([moved(offset) for offset in others], axis=0), axis=tuple(range(1, rank + 2)))
    assert (shorter.losses >= best - 1e-5).all()


@pytest.mark.slow
def test_the_step_keeps_lengths_and_compares_shortened_displacements():
    """A bump along an axis is nearer than one along the diagonal, which a shortened displacement does not reach."""
    image = jnp.zeros((1, 3, 3, 1)).at[0, 1, 2, 0].set(1.0).at[0, 2, 2, 0].set(1.9)
    found = greedy_step(lambda x: x[:, 1, 1, 0], image, ball=balls.pixelwise_l2(0.5))
    np.testing.assert_allclose(found.params[0, 1, 1], [0.0, 0.5])
    np.testing.assert_allclose(found.losses, 0.5)  # the diagonal one: 0.354 * 0.646 + 1.9 * 0.354 ** 2 < 0.47
    cube = greedy_step(lambda x: x[:, 1, 1, 0], image, ball=balls.linf(0.5))
    np.testing.assert_allclose(cube.params[0, 1, 1], [0.5, 0.5])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("ball", [balls.linf(0.3), balls.pixelwise_l2(0.3)])
def test_flows_of_sixteen_bit_images_keep_the_radius(dtype, ball):
    weights = jax.random.normal(KEY, IMAGES.shape[1:])
    found = greedy_step(lambda x: jnp.sum(x * weights, axis=(1, 2, 3)), IMAGES.astype(dtype), ball=ball)
    assert found.images.dtype == dtype
    assert found.params.dtype == jnp.float32
    np.testing.assert_allclose(ball.norm(found.params), 0.3, rtol=1e-6)


def test_no_gradient_no_step():
    def loss_fn(images):
        return jnp.stack([0.0, jnp.nan, 1.0]) * jnp.sum(images, axis=(1, 2, 3))

    found = greedy_step(loss_fn, IMAGES, ball=balls.linf(0.5))
    np.testing.assert_array_equal(found.params[:2], 0)
    np.testing.assert_array_equal(found.images[:2], IMAGES[:2])
    assert np.abs(found.params[2]).max() == 0.5


def test_the_step_stops_gradients_with_a_traced_radius():
    weights = jax.random.normal(KEY, IMAGES.shape[1:])

    def through(weights, share):
        ball = balls.scaled(balls.linf(0.5), share)
        found = greedy_step(lambda x: jnp.sum(jnp.tanh(x * weights), axis=(1, 2, 3)), IMAGES, ball=ball)
        return jnp.sum(found.images) + jnp.sum(found.params) + jnp.sum(found.losses)

    np.testing.assert_array_equal(jax.jit(jax.grad(through))(weights, 0.5), 0)


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="the ball's radius must be one number"):
        greedy(ball=balls.linf(jnp.array([0.1, 0.2])))
    with pytest.raises(TypeError, match="ball must be"):
        greedy_step(lambda images: images[:, 0, 0, 0], IMAGES, ball=0.5)
    with pytest.raises(ValueError, match="keep"):
        greedy(ball=balls.linf(1.0), keep="last")
