"""The checks for users find what breaks a law; that the library's own values pass them is tested beside those."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import perceptron

from deformreg import Perturbation, flow, l2, linf, warp
from deformreg.attacks import pgd
from deformreg.attacks.attack import Attack
from deformreg.testing import check_attack, check_ball, check_family

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 3, 4, 1)).astype(np.float32))
PARAMS = jnp.zeros((3, 2, 2))
FLOW, BALL, LENGTH = flow(), linf(0.5), l2(0.5)
ATTACK = pgd(ball=BALL, num_steps=3, keep="any")
LOGITS = perceptron(12)
LABELS = jnp.argmax(LOGITS(IMAGES), axis=1)


def first(values):
    return values[:, None, None, None]


def scaled_field(scale):
    return FLOW._replace(pullback=lambda gradients, images: scale * FLOW.pullback(gradients, images))


FAMILIES = {
    "init must return arrays whose first axis": FLOW._replace(init=lambda images: jnp.zeros(2)),
    "init must return zeros": FLOW._replace(init=lambda images: FLOW.init(images) + 1),
    "the identity must return the images": FLOW._replace(apply=lambda params, images: images + 1e-7),
    "constrain must not move": FLOW._replace(constrain=lambda params, images: params + 1),
    "field must return flows": FLOW._replace(field=lambda params, images: params[..., :1]),
    "the identity's field must be zero": FLOW._replace(field=lambda params, images: params + 1),
    "apply must treat every example alone": FLOW._replace(
        apply=lambda params, images: warp(images, params + params.mean(axis=0, keepdims=True))
    ),
    "pullback must be the derivative": scaled_field(2.0),
    "the penalty's derivative must be finite": Perturbation(
        init=lambda images: jnp.zeros(len(images)),
        # Its derivative, the contrast's root, has no derivative on constant images.
        apply=lambda params, images: (
            images
            + first(params)
            * jnp.sqrt(jnp.sum((images - images.mean((1, 2, 3), keepdims=True)) ** 2, (1, 2, 3), keepdims=True))
        ),
    ),
}


@pytest.mark.parametrize("law", FAMILIES)
def test_what_is_wrong_with_a_family_is_found(law):
    with pytest.raises(AssertionError, match=law):
        check_family(FAMILIES[law], IMAGES)


BALLS = {
    "samples must lie": BALL._replace(sample=linf(2.0).sample),
    "samples of different keys": BALL._replace(sample=lambda key, params: jnp.full_like(params, 0.25)),
    "project must return a point": BALL._replace(project=lambda params: params),
    "project must leave points inside": BALL._replace(project=lambda params: BALL.project(0.9 * params)),
    "project must return the nearest": BALL._replace(
        project=lambda params: jnp.where(first(BALL.norm(params))[..., 0] <= 0.5, params, 0 * params)
    ),
    "project must treat every example alone": LENGTH._replace(
        project=lambda params: params * jnp.minimum(1, 0.5 / jnp.max(LENGTH.norm(params)))
    ),
    "support must be at least": BALL._replace(support=linf(0.1).support),
    "the derivative of support": BALL._replace(support=linf(1.0).support),
    "steepest, times the radius": BALL._replace(steepest=lambda gradient: 0.5 * BALL.steepest(gradient)),
    "the steepest direction of no gradient": BALL._replace(
        steepest=lambda gradient: jnp.where(gradient >= 0, 1.0, -1.0)
    ),
}


@pytest.mark.parametrize("law", BALLS)
def test_what_is_wrong_with_a_ball_is_found(law):
    with pytest.raises(AssertionError, match=law):
        check_ball(BALLS[law], PARAMS, key=KEY)


def finishing(change, attack=ATTACK):
    """An attack with a change of its state after every step."""

    def step(logits_fn, examples, search):
        return change(attack.step(logits_fn, examples, search))

    return attack._replace(step=step)


ATTACKS = {
    "success must be what the model says": finishing(
        lambda search: search._replace(broken=jnp.ones_like(search.broken)), pgd(ball=linf(1e-3), num_steps=1)
    ),
    "losses must be finite": finishing(lambda search: search._replace(losses=search.losses + jnp.inf)),
    "model_calls must be": finishing(lambda search: search._replace(calls=search.calls + 100, done=~search.broken)),
    "the parameters must keep the budget": ATTACK._replace(size=lambda params, images: 1.1 + jnp.zeros(len(images))),
    "an example's result must not depend": finishing(
        lambda search: search._replace(losses=search.losses + jnp.mean(search.params))
    ),
}


@pytest.mark.parametrize("law", ATTACKS)
def test_what_is_wrong_with_an_attack_is_found(law):
    with pytest.raises(AssertionError, match=law):
        check_attack(ATTACKS[law], LOGITS, IMAGES, LABELS, key=KEY)


@pytest.mark.parametrize(
    ("law", "change"),
    [
        ("failures must return the clean", {"images": 1e-6}),
        ("successes must return the image", {"params": 1.0}),
    ],
)
def test_images_that_are_not_those_of_the_search_are_found(law, change):
    def run(self, *arguments, **options):
        result = Attack.run(self, *arguments, **options)
        if "images" in change:
            moved = jnp.where(first(result.success), result.images, result.images + change["images"])
            return result._replace(images=moved)
        return result._replace(params=result.params + change["params"])

    attack = type("Meddling", (Attack,), {"run": run})(*pgd(ball=linf(1e-3), num_steps=1))
    labels = LABELS.at[0].set((LABELS[0] + 1) % 5)  # a clean error is a success
    with pytest.raises(AssertionError, match=law):
        check_attack(attack, LOGITS, IMAGES, labels, key=KEY)


def test_examples_that_interact_are_found_in_images_one_pixel_high():
    law = "an example's result must not depend"
    flat = IMAGES.reshape(4, 1, 12, 1)
    with pytest.raises(AssertionError, match=law):
        check_attack(ATTACKS[law], LOGITS, flat, LABELS, key=KEY)
