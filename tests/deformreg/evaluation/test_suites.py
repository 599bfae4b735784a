"""The suites of attacks: members by name, traced radii, targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import perceptron

from deformreg import attacks, balls, released
from deformreg.evaluation import Suite, evaluator, suites

SHAPE = (5, 6, 1)
KEY = jax.random.key(7)
IMAGES = np.random.default_rng(0).random((3, *SHAPE)).astype(np.float32)
LABELS = np.arange(3)
SUITES = {**suites.SUITES, "released": released.suite()}
# Attacks that `full` has, too, differ from its own in numbers only.
MEMBERS = [(s, name) for s in SUITES for name in SUITES[s].names if s == "full" or name not in suites.full.names]


@pytest.mark.parametrize(("suite", "name"), MEMBERS)
def test_members_take_a_traced_radius(suite, name):
    logits_fn = perceptron(30)

    def run(radius):
        return SUITES[suite].member(name, radius).run(logits_fn, IMAGES, LABELS, KEY)

    assert jax.eval_shape(run, jnp.float32(0.5)).images.shape == (3, *SHAPE)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_the_full_suite_takes_targets_for_every_number_of_classes(classes):
    logits_fn, targets = perceptron(30, classes=classes), np.ones(3, int)
    for attack in suites.full(0.5):
        if classes == 3 or attack.name.startswith("apgd"):
            found = jax.eval_shape(
                lambda attack=attack: attack.run(logits_fn, IMAGES, np.zeros(3, int), KEY, targets=targets)
            )
            assert found.images.shape == (3, *SHAPE), attack.name


def test_an_evaluation_makes_only_the_member_that_it_traces():
    made = []

    def make(name):
        def member(radius):
            if isinstance(radius, jax.core.Tracer):
                made.append(name)
            return attacks.pgd(ball=balls.linf(radius), num_steps=2)

        return member

    pair = Suite({"first": make("first")}).plus("second", make("second"))
    assert pair.names == ("first", "second")
    assert [attack.name for attack in pair(0.5)] == ["first", "second"]
    pair.member("second", 0.5)
    run = evaluator(pair, diagnosis=False)
    run(perceptron(30), IMAGES, np.asarray(perceptron(30)(IMAGES)).argmax(axis=1), radius=1e-3, key=KEY)
    # One of the two is never traced between two traces of the other.
    assert made == sorted(made)
    assert set(made) == {"first", "second"}


def test_a_suite_has_members_of_different_names():
    with pytest.raises(ValueError, match="at least one attack"):
        Suite({})
    with pytest.raises(ValueError, match="different names, got 'greedy' twice"):
        suites.quick.plus("greedy", suites.quick.makers["greedy"])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(30, 2), (2, 3, 5, 2)], ids=["signals", "volumes"])
def test_a_suite_without_rotations_takes_every_rank(shape):
    logits_fn, images = perceptron(60), IMAGES.repeat(2, axis=-1).reshape(3, *shape)
    suite = suites.full.without("rotation-translation")
    assert set(suites.full.names) - set(suite.names) == {"rotation-translation"}
    for attack in suite(0.5):
        found = jax.eval_shape(lambda attack=attack: attack.run(logits_fn, images, LABELS, KEY))
        assert found.images.shape == images.shape, attack.name
    with pytest.raises(ValueError, match=r"names must be one of 'greedy', .*, got 'rotation'"):
        suite.without("rotation")
