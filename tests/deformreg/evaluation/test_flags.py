"""Every red flag on a model that has the fault, and none on a healthy one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import perceptron

from deformreg import attacks, balls, evaluate
from deformreg.attacks import Examples
from deformreg.attacks.attack import as_argument
from deformreg.evaluation import suites
from deformreg.evaluation.flags import OUTCOME_FLAGS, RESPONSE_FLAGS, compile_diagnosis, raised
from deformreg.evaluation.flags.responses import compile_responses
from deformreg.perturbations import additive, flow

KEY = jax.random.key(0)
HEALTHY = perceptron(64)
RADIUS = 0.5
IMAGES = np.random.default_rng(0).random((64, 8, 8, 1)).astype(np.float32)
SUITE = [
    attacks.random_fields(ball=balls.linf(RADIUS), num_fields=5, name="random"),
    attacks.pgd(ball=balls.linf(RADIUS), num_steps=10, keep="any", name="pgd"),
]


def diagnose(logits_fn, labels, suite):
    found, calls = compile_diagnosis(suites.fixed(suite))(as_argument(logits_fn), IMAGES, labels, radius=None, key=KEY)
    assert calls > 0
    return found


def names(logits_fn, suite=SUITE):
    labels = np.asarray(jnp.argmax(logits_fn(jnp.asarray(IMAGES)), axis=1))
    found = diagnose(logits_fn, labels, suite)
    for flag in found:
        assert flag.explanation
        assert flag.evidence
    return {flag.name for flag in found}


def test_a_healthy_model_raises_none():
    labels = np.asarray(jnp.argmax(HEALTHY(IMAGES), axis=1))
    assert evaluate(HEALTHY, IMAGES, labels, SUITE, batch_size=16, key=KEY).flags == ()


@pytest.mark.parametrize(
    "attack",
    [
        attacks.elastic(0.01, sigma=0.5),
        attacks.stadv(ball=balls.linf(0.01)),
    ],
    ids=lambda attack: attack.name,
)
def test_larger_budgets_are_tried_without_the_bound_of_the_family(attack):
    assert names(HEALTHY, [attack]) == set()


@pytest.mark.parametrize(
    ("ball", "family", "radius"),
    [
        (balls.l2(0.8), additive(image_range=(0.0, 1.0)), 0.8 / 64**0.5),
        (balls.pixelwise_l2(0.2), flow(), 0.2 / 2**0.5),
    ],
)
def test_the_budget_examined_lies_in_the_ball(ball, family, radius):
    def masked(images):
        return HEALTHY(jnp.round(images * 4) / 4)

    labels = np.asarray(jnp.argmax(masked(IMAGES), axis=1))
    suite = [attacks.pgd(ball=ball, num_steps=5, perturbation=family)]
    found = {flag.name: flag for flag in diagnose(masked, labels, suite)}
    np.testing.assert_allclose(found["budget_without_effect"].evidence["radii"][0], radius)


def test_a_quantizing_layer_is_caught():
    def masked(images):
        return HEALTHY(jnp.round(images * 4) / 4)

    labels = np.asarray(jnp.argmax(masked(IMAGES), axis=1))
    flags = {flag.name for flag in evaluate(masked, IMAGES, labels, SUITE, batch_size=16, key=KEY).flags}
    assert flags >= {
        "zero_gradients",
        "unbounded_attack_fails",
        "budget_without_effect",
        "gradient_free_beats_gradients",
    }


def test_a_huge_logit_scale_is_caught():
    assert "zero_gradients" in names(lambda images: 1e4 * HEALTHY(images))


def test_probabilities_are_caught():
    assert "probabilities_not_logits" in names(lambda images: jax.nn.softmax(HEALTHY(images)))


def test_a_random_model_is_caught():
    calls = []

    def noisy(images):
        calls.append(0)
        return HEALTHY(images) + 0.1 * jax.random.normal(jax.random.key(len(calls)), (len(images), 5))

    assert "outputs_change_between_calls" in names(noisy)


def test_statistics_of_the_batch_are_caught():
    def normalized(images):
        logits = HEALTHY(images)
        return logits - logits.mean(axis=0)

    assert names(normalized) >= {"outputs_depend_on_the_batch"}


def test_logits_that_are_not_finite_are_caught():
    assert "logits_not_finite" in names(lambda images: HEALTHY(images).at[0].set(jnp.nan))


def test_a_zero_perturbation_that_changes_the_images_is_caught():
    shrinking = flow()._replace(apply=lambda params, images: flow().apply(params, 0.99 * images))
    suite = [attacks.pgd(ball=balls.linf(RADIUS), num_steps=3, perturbation=shrinking)]
    assert "identity_changes_the_loss" in names(HEALTHY, suite)


def test_iterations_that_are_stuck_are_caught():
    # The gradient points the right way at the undeformed images alone.
    reference = jnp.asarray(IMAGES)

    @jax.custom_vjp
    def turned(images, away):
        return images

    turned.defvjp(lambda images, away: (images, away), lambda away, g: (jnp.where(away, -g, g), None))

    def masked(images):
        distance = jnp.abs(images[:, None] - reference[None]).max((2, 3, 4)).min(1)
        return HEALTHY(turned(images, (distance > 1e-6)[:, None, None, None]))

    rows = Examples(reference, jnp.argmax(HEALTHY(reference), axis=1), jax.random.split(KEY, 64))
    observe = compile_responses(lambda radius: flow())
    responses = observe(None, as_argument(masked), rows, np.ones(64, bool), 0.1, KEY)
    assert "more_steps_are_weaker" in {flag.name for flag in raised(RESPONSE_FLAGS, responses)}


@pytest.mark.parametrize(("missed", "is_raised"), [(1, False), (3, True)])
def test_gradient_free_attacks_that_win_are_counted(missed, is_raised):
    labels = np.asarray(jnp.argmax(HEALTHY(IMAGES), axis=1))
    gradients, free = (
        evaluate(HEALTHY, IMAGES, labels, [attack], batch_size=64, key=KEY, diagnosis=False).attacks[0]
        for attack in (SUITE[1]._replace(name="none"), SUITE[0])
    )
    nobody, some = np.zeros(64, bool), np.arange(64) < missed
    outcomes = [free._replace(broken_mask=some), gradients._replace(broken_mask=nobody)]
    flags = {flag.name for flag in raised(OUTCOME_FLAGS, outcomes)}
    assert ("gradient_free_beats_gradients" in flags) == is_raised
    outcomes = [outcomes[0], gradients._replace(broken_mask=some)]
    assert "gradient_free_beats_gradients" not in {flag.name for flag in raised(OUTCOME_FLAGS, outcomes)}
