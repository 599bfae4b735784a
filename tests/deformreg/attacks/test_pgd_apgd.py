"""Multi-step ascent and APGD: closed forms, and NumPy twins in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import linear_model, ramp_model, ramps

from deformreg import balls
from deformreg.attacks import apgd, pgd
from deformreg.attacks.apgd import schedule
from deformreg.losses import targeted_difference_of_logits_ratio as targeted_ratio
from deformreg.perturbations import Perturbation, additive

VECTOR = Perturbation(init=jnp.zeros_like, apply=lambda params, images: images + params)


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_the_minimal_pixel_budget_of_a_linear_model(factor):
    logits_fn, weights = linear_model((3, 4, 1))
    images = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3, 4, 1)).astype(np.float32))
    gaps = np.asarray(logits_fn(images))[:, 1]
    labels = jnp.asarray(gaps > 0).astype(jnp.int32)
    for row in range(2):  # the radius that flips this row flips exactly the rows with smaller gaps
        radius = factor * abs(gaps[row]) / np.abs(weights).sum()
        breaks = np.abs(gaps) < radius * np.abs(weights).sum()
        attack = pgd(ball=balls.linf(radius), num_steps=4, perturbation=additive())
        result = attack.run(logits_fn, images, labels, jax.random.key(0))
        np.testing.assert_array_equal(result.success, breaks)
        assert result.success[row] == (factor > 1)


def test_many_small_steps_reach_the_boundary_of_sixteen_bit_images():
    logits_fn, weights = linear_model((2, 2, 1))
    attack = pgd(ball=balls.linf(1.0), num_steps=600, perturbation=additive())
    images = jnp.zeros((1, 2, 2, 1), jnp.bfloat16)
    result = attack.run(lambda x: logits_fn(x, -10.0), images, np.zeros(1, int), jax.random.key(0))
    np.testing.assert_allclose(result.params[0], np.sign(weights), rtol=1e-4)


@pytest.mark.parametrize("factor", [0.98, 1.02])
@pytest.mark.parametrize("make", [lambda ball: pgd(ball=ball, num_steps=4, keep="any"), lambda ball: apgd(ball=ball)])
def test_the_minimal_displacement_of_a_ramp(make, factor):
    images, slopes, weights = ramps(6)
    gap = 0.8
    clean = gap - (images[..., 0] * weights).sum((1, 2))
    minimal = clean / (slopes * np.abs(weights).sum())  # in pixels: every displacement by its weight's sign
    radius = factor * float(minimal[0])
    result = make(balls.linf(radius)).run(ramp_model(weights, gap), images, np.zeros(6, int), jax.random.key(0))
    np.testing.assert_array_equal(result.success, minimal < radius)


def test_any_iterate_ends_the_search_where_the_boundary_is_crossed():
    logits_fn, weights = linear_model((3, 4, 1))
    images = jnp.zeros((3, 3, 4, 1))
    gap = jnp.array([0.9, 2.4, 5.0])[:, None] * jnp.array([[0.0, -1.0]])

    def shifted(images):
        return logits_fn(images) + gap

    size = 1 / np.abs(weights).sum()  # every step closes the gap by one
    attack = pgd(ball=balls.linf(10 * size), num_steps=4, step_size=size, perturbation=additive(), keep="any")
    result = attack.run(shifted, images, np.zeros(3, int), jax.random.key(0))
    assert result.success.tolist() == [True, True, False]
    assert result.model_calls.tolist() == [2, 4, 5]  # the start counts one
    np.testing.assert_allclose(result.norms.linf, np.array([1, 3, 4]) * size, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"num_steps": 50}, 1 / 50),
        ({"num_steps": 50, "restarts": 2}, 2.5 / 50),
        ({"num_steps": 100, "start": "random", "keep": "best"}, 2.5 / 100),
        ({"num_steps": 100, "keep": "any"}, 1 / 4),
        ({"num_steps": 5, "restarts": 2, "keep": "any"}, 2.5 / 5),
    ],
)
def test_default_step_sizes(options, share):
    settings = pgd(ball=balls.linf(0.8), **options).settings
    assert settings["step_size"] == pytest.approx(0.8 * share)


def test_restarts_after_a_zero_start_are_random():
    # The gradient of this loss vanishes only at zero.
    def logits_fn(images):
        gap = jnp.sum(images**2, axis=(1, 2, 3)) - 1e-4
        return jnp.stack([jnp.zeros_like(gap), gap], axis=1)

    images, labels = jnp.zeros((2, 3, 3, 1)), np.zeros(2, int)
    common = {"ball": balls.linf(0.5), "num_steps": 2, "perturbation": additive(), "keep": "any"}
    once = pgd(**common).run(logits_fn, images, labels, jax.random.key(0))
    twice = pgd(**common, restarts=2).run(logits_fn, images, labels, jax.random.key(0))
    assert not once.success.any()
    assert once.model_calls.tolist() == [3, 3]
    assert twice.success.all()
    assert twice.model_calls.tolist() == [4, 4]
    assert (twice.params[0] != twice.params[1]).any()


def test_the_checkpoints_of_autoattack():
    # 100 steps: windows 22, 19, 16, 13, 10, 7, then 6.
    plan = schedule(100)
    assert np.flatnonzero(plan.checkpoint).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert np.asarray(plan.window)[[22, 41, 57, 70, 80, 87, 93, 99]].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]


def bumpy(images, namespace):
    """A loss with many local maxima, so that the step is halved and the search jumps back."""
    return namespace.sum(namespace.sin(7 * images) - 0.3 * (images - 0.4) ** 2, axis=(1, 2, 3))


def never_broken(images):
    """Two logits: `bumpy`, and one that is always smaller."""
    value = bumpy(images, jnp)
    return jnp.stack([value, value - 1], axis=1)


def apgd_twin(images, radius, num_steps):
    """Algorithm 1 of Croce and Hein for one example in l-infinity, as in their code: the best point and its loss."""

    def value(x):
        return bumpy(x, np).item()

    def slope(x):
        return 7 * np.cos(7 * x) - 0.6 * (x - 0.4)

    def clip(x):
        return images + np.clip(x - images, -radius, radius)

    x = best = old = images
    gradient = best_gradient = slope(x)
    losses = [value(x)]
    best_loss = checkpoint_loss = losses[0]
    step, reduced, counter = 2 * radius, True, 0
    window, smallest, shrink = (
        max(int(0.22 * num_steps), 1),
        max(int(0.06 * num_steps), 1),
        max(int(0.03 * num_steps), 1),
    )
    halved = 0
    for i in range(num_steps):
        momentum, share = x - old, 0.75 if i else 1.0
        old = x
        stepped = clip(x + step * np.sign(gradient))
        x = clip(x + (stepped - x) * share + momentum * (1 - share))
        gradient = slope(x)
        losses.append(value(x))
        if losses[-1] > best_loss:
            best, best_gradient, best_loss = x, gradient, losses[-1]
        counter += 1
        if counter == window:
            rises = sum(losses[j] > losses[j - 1] for j in range(len(losses) - window, len(losses)))
            reduced = rises <= 0.75 * window or (not reduced and checkpoint_loss >= best_loss)
            checkpoint_loss = best_loss
            if reduced:
                step, x, gradient, halved = step / 2, best, best_gradient, halved + 1
            window, counter = max(window - shrink, smallest), 0
    return best - images, best_loss, halved


@pytest.mark.parametrize("num_steps", [7, 40])
def test_apgd_is_its_twin(float64, num_steps):
    images = np.random.default_rng(0).uniform(-1, 1, (4, 3, 3, 1))
    attack = apgd(
        ball=balls.linf(0.6), num_steps=num_steps, perturbation=VECTOR, start="zero", keep="best", initial_step=2.0,
        loss=lambda logits, labels: logits[:, 0],
    )  # fmt: skip
    result = attack.run(never_broken, jnp.asarray(images), np.zeros(4, int), jax.random.key(0))
    halvings = 0
    for row in range(4):
        params, loss, halved = apgd_twin(images[row : row + 1], 0.6, num_steps)
        np.testing.assert_allclose(result.params[row], params[0], atol=1e-9)
        np.testing.assert_allclose(result.losses[row], loss, rtol=1e-9)
        halvings += halved
    assert halvings > 0


def test_the_released_protocol_is_its_twin(float64):
    images = np.random.default_rng(0).uniform(-1, 1, (4, 3, 3, 1))
    params = np.zeros_like(images)
    for _ in range(7):
        slope = 7 * np.cos(7 * (images + params)) - 0.6 * (images + params - 0.4)
        params = np.clip(params + 0.6 / 7 * np.sign(slope), -0.6, 0.6)
    attack = pgd(ball=balls.linf(0.6), num_steps=7, perturbation=VECTOR, loss=lambda logits, labels: logits[:, 0])
    result = attack.run(never_broken, jnp.asarray(images), np.zeros(4, int), jax.random.key(0))
    np.testing.assert_allclose(result.params, params, atol=1e-12)
    np.testing.assert_allclose(result.losses, bumpy(images + params, np), rtol=1e-12)


def test_targeted_apgd_aims_at_the_classes_ranked_next():
    # The runner-up's logit does not move; only an attack at the third class can succeed.
    def logits_fn(images):
        third = images.sum((1, 2, 3))
        return jnp.stack([jnp.ones_like(third), 0.9 * jnp.ones_like(third), third, 0 * third - 1], axis=1)

    images, labels = jnp.zeros((1, 2, 2, 1)), np.zeros(1, int)
    common = {"ball": balls.linf(0.3), "num_steps": 3, "perturbation": additive(), "loss": "margin"}
    assert not apgd(**common, num_targets=1).run(logits_fn, images, labels, jax.random.key(0)).success.any()
    result = apgd(**common, num_targets=2, start="zero", initial_step=2.0).run(
        logits_fn, images, labels, jax.random.key(0)
    )
    assert result.success.all()
    assert result.model_calls.tolist() == [1 + 4 + 2]  # the ranking, the first target, the step that crosses
    # A target given to the run takes precedence over the ranking.
    aimed = apgd(**common, num_targets=2, start="zero", initial_step=2.0).run(
        logits_fn, images, labels, jax.random.key(0), targets=np.full(1, 2)
    )
    assert aimed.model_calls.tolist() == [1 + 2]


def test_the_targeted_ratio_does_not_change_with_the_scale():
    logits, labels, targets = jnp.array([[4.0, 2.0, 1.0, 0.5]]), jnp.array([0]), jnp.array([1])
    np.testing.assert_allclose(targeted_ratio(logits, labels, targets), [-2 / (4 - 0.75)], rtol=1e-6)
    np.testing.assert_allclose(targeted_ratio(100 * logits + 7, labels, targets), [-2 / 3.25], rtol=1e-5)
    with pytest.raises(ValueError, match="at least 4 classes"):
        targeted_ratio(logits[:, :3], labels, targets)
