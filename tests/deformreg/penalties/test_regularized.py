"""Several families from one pass, and losses with a penalty."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformreg import additive, affine, flow, gradient_penalties, gradient_penalty, linf, regularized
from deformreg.penalties import forward_over_reverse_penalty

pytestmark = pytest.mark.usefixtures("strict_promotion")

IMAGES = np.random.default_rng(0).uniform(size=(3, 4, 5, 2)).astype(np.float32)
FAMILIES = {"flow": flow(), "pixels": additive(), "affine": affine()}


def loss_fn(images):
    return jnp.sum(jnp.sin(images) ** 2, axis=(1, 2, 3))


def with_aux(images):
    return loss_fn(images), images.mean()


def test_several_families_share_one_call_of_the_loss():
    calls = []

    def counted(images):
        calls.append(len(images))
        return loss_fn(images)

    def three(images):
        return gradient_penalties(counted, images, FAMILIES, size=linf(0.5).support)

    penalties, losses = jax.jit(three)(IMAGES)
    assert calls == [3]
    np.testing.assert_allclose(losses, loss_fn(IMAGES), rtol=1e-6)
    assert set(penalties) == set(FAMILIES)
    for name, family in FAMILIES.items():
        alone, _ = gradient_penalty(loss_fn, IMAGES, family, size=linf(0.5).support)
        np.testing.assert_allclose(penalties[name], alone, rtol=1e-5)


def test_a_regularized_loss_is_the_loss_and_the_weighted_penalties():
    weights = {"flow": np.array([0.0, 1.0, 2.0], np.float32), "pixels": 0.5, "affine": 0}
    losses, metrics = jax.jit(regularized(with_aux, FAMILIES, weights, has_aux=True))(IMAGES)
    expected = loss_fn(IMAGES) + sum(weights[name] * metrics.penalties[name] for name in FAMILIES)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics.losses, loss_fn(IMAGES), rtol=1e-6)
    np.testing.assert_allclose(metrics.aux, IMAGES.mean(), rtol=1e-6)
    assert regularized(loss_fn)(IMAGES)[1].aux is None


@pytest.mark.parametrize("rule", [gradient_penalty, forward_over_reverse_penalty, partial(gradient_penalties)])
def test_every_rule_of_a_penalty_gives_the_same_gradient(rule):
    def objective(scale):
        function = regularized(lambda images: loss_fn(scale * images), flow(), 3.0, rule=rule)
        return jnp.mean(function(IMAGES)[0])

    def by_hand(scale):
        penalties, losses = gradient_penalty(lambda images: loss_fn(scale * images), IMAGES)
        return jnp.mean(losses) + 3 * jnp.mean(penalties)

    np.testing.assert_allclose(jax.grad(objective)(1.0), jax.grad(by_hand)(1.0), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: regularized(loss_fn, weight=-1.0), ValueError, ["weight", "at least 0", "-1.0"]),
        (lambda: regularized(loss_fn, weight=np.ones(2))(IMAGES), ValueError, ["weight", "(3,)", "(2,)"]),
        (lambda: gradient_penalties(loss_fn, IMAGES, ()), ValueError, ["at least one family"]),
        (lambda: gradient_penalties(loss_fn, IMAGES, (flow,)), TypeError, ["perturbation", "call it, flow(...)"]),
    ],
)
def test_what_does_not_fit_is_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words)
