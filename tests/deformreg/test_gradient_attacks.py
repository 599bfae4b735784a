"""Projected ascent on functions with known maxima, and the one- and multi-step attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformreg import (
    additive,
    affine,
    flow,
    l2,
    linf,
    lowres_flow,
    multi_step,
    noise,
    one_step,
    pixelwise_l2,
)
from deformreg.attacks import projected_ascent
from deformreg.warping import forward_differences

pytestmark = pytest.mark.usefixtures("strict_promotion")

TOPS = np.array([[0.3, -0.2], [2.0, 0.1], [-3.0, 4.0]], np.float32)


def hill(params):
    return -jnp.sum((params - TOPS) ** 2, axis=-1)


def pixel_hill(params):
    return -jnp.sum((params - TOPS[:, None]) ** 2, axis=(1, 2))


@pytest.mark.parametrize(
    ("objective", "start", "ball", "expected"),
    [
        (hill, TOPS * 0, linf(1.0), np.clip(TOPS, -1, 1)),
        (hill, TOPS * 0, linf(np.array([0.1, 2.0], np.float32)), np.clip(TOPS, [-0.1, -2.0], [0.1, 2.0])),
        (hill, TOPS * 0, l2(1.0), TOPS / np.maximum(1, np.linalg.norm(TOPS, axis=1, keepdims=True))),
        (
            hill,
            TOPS * 0,
            l2(np.array([0.1, 0.2, 1.0], np.float32)),
            TOPS * (np.array([0.1, 0.2, 1.0]) / np.linalg.norm(TOPS, axis=1))[:, None],
        ),
        (
            pixel_hill,
            np.zeros((3, 2, 2), np.float32),
            pixelwise_l2(1.0),
            np.repeat((TOPS / np.maximum(1, np.linalg.norm(TOPS, axis=1, keepdims=True)))[:, None], 2, axis=1),
        ),
    ],
    ids=["linf", "linf per component", "l2", "l2 per example", "pixelwise_l2"],
)
def test_concave_quadratics_are_climbed_to_their_constrained_maximum(objective, start, ball, expected):
    # Steps of fixed length end within one step of the top, or slide to it along the boundary.
    run = jax.jit(lambda start: projected_ascent(objective, start, ball=ball, step_size=0.01, num_steps=600))
    found = run(start)
    np.testing.assert_allclose(found.params, expected, atol=0.02)
    np.testing.assert_allclose(found.values, objective(found.params), rtol=1e-5)


def test_the_best_is_never_worse_than_the_last_and_counts_the_start():
    found = {
        keep: projected_ascent(hill, TOPS * 0, ball=linf(10.0), step_size=0.7, num_steps=9, keep=keep)
        for keep in ("last", "best")
    }
    assert np.all(found["best"].values >= found["last"].values)
    assert np.any(found["best"].values > found["last"].values)  # too long a step oscillates about the top
    np.testing.assert_allclose(hill(found["best"].params), found["best"].values, rtol=1e-6)
    at_the_top = projected_ascent(hill, TOPS, ball=linf(10.0), step_size=0.7, num_steps=1, keep="best")
    np.testing.assert_array_equal(at_the_top.params, TOPS)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_no_steps_return_the_start(keep):
    found = projected_ascent(hill, TOPS + 1, ball=linf(10.0), step_size=0.7, num_steps=0, keep=keep)
    np.testing.assert_array_equal(found.params, TOPS + 1)
    np.testing.assert_allclose(found.values, -2.0, rtol=1e-5)


def test_the_constraint_holds_at_every_point():
    found = projected_ascent(
        hill, TOPS * 0, ball=linf(5.0), step_size=0.1, num_steps=100, constrain=lambda params: jnp.minimum(params, 0.05)
    )
    np.testing.assert_allclose(found.params, np.minimum(TOPS, 0.05), atol=0.11)
    assert found.params.max() <= 0.05


def test_parameters_may_be_a_pytree():
    def objective(params):
        return hill(params["a"]) - jnp.abs(params["b"] - 1)

    start = {"a": TOPS * 0, "b": np.zeros(3, np.float32)}
    found = projected_ascent(objective, start, ball=linf(0.5), step_size=0.1, num_steps=9)
    np.testing.assert_allclose(found.params["b"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(found.params["a"], np.clip(TOPS, -0.5, 0.5), atol=0.11)


def test_step_sizes_may_be_arrays():
    sizes = np.array([0.1, 0.3], np.float32)
    found = projected_ascent(hill, TOPS * 0, ball=linf(9.0), step_size=sizes, num_steps=1)
    np.testing.assert_allclose(found.params, np.sign(TOPS) * sizes)
    sizes = np.array([0.1, 0.2, 0.3], np.float32)
    found = projected_ascent(hill, TOPS * 0, ball=l2(9.0), step_size=sizes, num_steps=1)
    np.testing.assert_allclose(np.linalg.norm(found.params, axis=1), sizes, rtol=1e-6)


IMAGES = np.random.default_rng(0).uniform(size=(8, 5, 4, 2)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(8, 5, 4, 2)).astype(np.float32)


def linear(images):
    return jnp.sum(images * WEIGHTS, axis=(1, 2, 3))


def curved(images):
    """The same function for every example, whatever the batch."""
    return jnp.sum(jnp.sin(3 * images) * WEIGHTS[:1], axis=(1, 2, 3))


@pytest.mark.parametrize(
    ("ball", "gain"),
    [
        (linf(0.1), 0.1 * np.abs(WEIGHTS).sum((1, 2, 3))),
        (l2(0.1), 0.1 * np.sqrt((WEIGHTS**2).sum((1, 2, 3)))),
        (pixelwise_l2(0.1), 0.1 * np.sqrt((WEIGHTS**2).sum(-1)).sum((1, 2))),
    ],
    ids=["linf", "l2", "pixelwise_l2"],
)
@pytest.mark.parametrize("num_steps", [1, 3])
def test_linear_models_lose_the_dual_norm_of_their_weights(ball, gain, num_steps):
    found = multi_step(linear, IMAGES, ball=ball, num_steps=num_steps, perturbation=additive())
    np.testing.assert_allclose(found.losses - linear(IMAGES), gain, rtol=1e-4)
    np.testing.assert_allclose(linear(found.images), found.losses, rtol=1e-5)
    np.testing.assert_allclose(ball.norm(found.params), 0.1, rtol=1e-5)  # radius / num_steps ends on the boundary


def test_one_step_is_a_multi_step_of_one():
    for ball in (linf(0.3), pixelwise_l2(0.3)):
        jax.tree.map(
            np.testing.assert_array_equal,
            one_step(curved, IMAGES, ball=ball),
            multi_step(curved, IMAGES, ball=ball, num_steps=1),
        )


def test_one_step_in_flow_follows_the_sign_of_the_forward_differences():
    found = one_step(linear, IMAGES, ball=linf(0.25))
    gradient = np.stack([(slopes * WEIGHTS).sum(-1) for slopes in forward_differences(IMAGES)], axis=-1)
    np.testing.assert_array_equal(found.params, 0.25 * np.sign(gradient))


@pytest.mark.parametrize("family", [flow(), flow(boundary="reflect"), affine(), lowres_flow(2, sigma=0.5)])
def test_attacks_raise_the_loss_inside_the_ball(family):
    ball = linf(0.2)
    attack = jax.jit(
        lambda images: multi_step(curved, images, ball=ball, num_steps=5, perturbation=family, keep="best")
    )
    found = attack(IMAGES)
    clean = curved(IMAGES)
    assert np.all(found.losses >= clean)
    assert np.mean(found.losses > clean) > 0.8  # across a kink, a short step uphill may decrease the loss
    assert np.all(ball.norm(found.params) <= 0.2 * (1 + 1e-6))
    np.testing.assert_allclose(family.apply(found.params, IMAGES), found.images, atol=1e-6)


def test_radii_per_example_and_per_component_set_the_default_step():
    radii = np.linspace(0.1, 0.8, 8).astype(np.float32)
    found = multi_step(linear, IMAGES, ball=l2(radii), num_steps=4, perturbation=additive())
    np.testing.assert_allclose(l2(1.0).norm(found.params), radii, rtol=1e-5)
    limits = np.array([0.1, 0.4, 0.2], np.float32)
    found = one_step(curved, IMAGES, ball=linf(limits), perturbation=affine())
    np.testing.assert_allclose(np.abs(found.params), np.broadcast_to(limits, (8, 3)), rtol=1e-6)


def test_images_stay_in_their_range():
    family = additive(image_range=(0.0, 1.0))
    found = multi_step(
        linear, IMAGES, ball=linf(0.5), num_steps=3, perturbation=family, start="random", key=jax.random.key(0)
    )
    assert 0 <= found.images.min() <= found.images.max() <= 1
    expected = np.where(WEIGHTS > 0, np.minimum(IMAGES + 0.5, 1), np.maximum(IMAGES - 0.5, 0))
    full = multi_step(linear, IMAGES, ball=linf(0.5), num_steps=3, perturbation=family)
    np.testing.assert_allclose(full.images, expected, atol=1e-6)


@pytest.mark.parametrize("start", ["random", noise.gaussian(5.0)])
def test_a_random_start_is_a_function_of_its_key_and_lies_in_the_ball(start):
    @jax.jit
    def begin(seed):
        return multi_step(curved, IMAGES, ball=l2(0.3), num_steps=0, start=start, key=jax.random.key(seed))

    one, again, other = begin(0), begin(0), begin(1)
    np.testing.assert_array_equal(one.params, again.params)
    assert not np.allclose(one.params, other.params)
    assert np.all(np.linalg.norm(np.reshape(one.params, (8, -1)), axis=1) <= 0.3 * (1 + 1e-6))
    assert not np.allclose(one.images, IMAGES)


def test_no_gradient_flows_through_an_attack():
    def through(scale):
        return jnp.sum(one_step(lambda images: scale * curved(images), scale * IMAGES, ball=linf(0.1)).images)

    assert jax.grad(through)(1.0) == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", [flow(), additive(image_range=(0.0, 1.0))], ids=["flow", "additive"])
def test_jit_pmap_and_singletons_agree_with_the_plain_call(family, cpus):
    def attack(images):
        return multi_step(curved, images, ball=l2(0.5), num_steps=3, perturbation=family, keep="best")

    compiled = jax.jit(attack)
    plain, jitted = attack(IMAGES), compiled(IMAGES)
    apart = jax.pmap(attack, devices=cpus)(IMAGES[:, None])
    alone = compiled(IMAGES[:1])
    for name in ("images", "params", "losses"):
        reference = getattr(plain, name)
        np.testing.assert_allclose(getattr(jitted, name), reference, atol=2e-5)
        np.testing.assert_allclose(getattr(apart, name)[:, 0], reference, atol=2e-5)
        np.testing.assert_allclose(getattr(alone, name), reference[:1], atol=2e-5)


def test_a_start_and_no_steps_on_an_empty_batch():
    found = multi_step(lambda x: jnp.sum(x, axis=(1, 2, 3)), IMAGES[:0], ball=linf(0.1), num_steps=2)
    assert found.images.shape == (0, 5, 4, 2)
    assert found.losses.shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"images": (IMAGES * 255).astype(np.uint8)}, TypeError, ["images", "uint8", "floating"]),
        ({"images": IMAGES[0, 0]}, ValueError, ["images", "[n, h, w, c]", "(4, 2)"]),
        ({"loss_fn": jnp.sum}, ValueError, ["loss_fn", "(8,)", "()"]),
        ({"num_steps": 2.0}, TypeError, ["num_steps", "integer", "2.0"]),
        ({"num_steps": -1}, ValueError, ["num_steps", "at least 0", "-1"]),
        ({"step_size": -0.1}, ValueError, ["step_size", "at least 0", "-0.1"]),
        ({"keep": "first"}, ValueError, ["keep", "'last', 'best'", "'first'"]),
        ({"start": "middle"}, ValueError, ["start", "'zero', 'random'", "'middle'"]),
        ({"start": "random"}, ValueError, ["key", "random start", "None"]),
        ({"start": noise.gaussian(1.0)}, ValueError, ["key", "random start", "None"]),
    ],
)
def test_what_does_not_fit_is_named_under_jit_too(change, error, words):
    arguments = {"loss_fn": linear, "images": IMAGES, "ball": linf(0.1), "num_steps": 2} | change
    loss_fn, images = arguments.pop("loss_fn"), arguments.pop("images")

    def attack(images):
        return multi_step(loss_fn, images, **arguments)

    for call in (attack, jax.jit(attack)):
        with pytest.raises(error) as caught:
            call(images)
        assert all(word in str(caught.value) for word in words)


def test_no_step_goes_along_a_gradient_that_is_not_finite():
    def rough(images):  # its slope is infinite where the image is zero
        return jnp.linalg.norm(images.reshape(len(images), -1), axis=1)

    images = jnp.stack([jnp.zeros((2, 3, 1)), jnp.ones((2, 3, 1))])
    found = multi_step(rough, images, perturbation=additive(), ball=linf(0.5), num_steps=2)
    np.testing.assert_allclose(found.images, images + jnp.array([0.0, 0.5]).reshape(2, 1, 1, 1))
