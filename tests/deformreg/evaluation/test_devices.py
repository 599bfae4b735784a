"""Evaluations on several devices, of images on demand, in parts: the outcome of every example stays the same."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import perceptron

from deformreg import attacks, balls
from deformreg.evaluation import Found, OnDemand, evaluate, evaluator, together
from deformreg.evaluation.devices import devices_of
from deformreg.perturbations import additive

SHAPE, COUNT, KEY = (3, 4, 1), 61, jax.random.key(3)
LOGITS = perceptron(12)
IMAGES = np.random.default_rng(0).random((COUNT, *SHAPE)).astype(np.float32)
LABELS = np.array(jnp.argmax(LOGITS(IMAGES), axis=1))
ATTACKS = [
    attacks.pgd(ball=balls.linf(0.1), num_steps=12, start="random", keep="any", perturbation=additive(), name="pgd"),
    attacks.pgd(ball=balls.linf(0.2), num_steps=6, keep="last", perturbation=additive(), name="last"),
]


def outcome(attack):
    """An attack's outcome without costs of the batches."""
    left_out = ("model_calls", "seconds", "compile_seconds", "attacked_mask", "broken_mask")
    plain = {name: value for name, value in attack._asdict().items() if name not in left_out}
    return plain, attack.attacked_mask.tolist(), attack.broken_mask.tolist()


@pytest.fixture(scope="module")
def run():
    return evaluator(ATTACKS, batch_size=8, image_range=(0.0, 1.0), diagnosis=False)


@pytest.fixture(scope="module")
def alone(run):
    result = run(LOGITS, IMAGES, LABELS, key=KEY)
    assert 0.1 < result.robust_accuracy < 0.9
    return [outcome(attack) for attack in result.attacks]


@pytest.mark.slow
def test_the_number_of_devices_changes_no_outcome(alone):
    for count, images in ((3, IMAGES), (8, OnDemand(lambda at: IMAGES[at], IMAGES.shape))):
        devices = jax.devices()[:count]
        result = evaluate(
            LOGITS, images, LABELS, ATTACKS, batch_size=8, image_range=(0.0, 1.0), key=KEY, diagnosis=False,
            devices=devices,
        )  # fmt: skip
        assert [outcome(attack) for attack in result.attacks] == alone


@pytest.mark.slow
def test_the_number_of_devices_changes_no_flag():
    """An attack that breaks nothing lets the diagnosis spend its share of the calls."""
    weak = [attacks.pgd(ball=balls.linf(1e-3), num_steps=30, keep="any", perturbation=additive())]
    found = [
        evaluate(
            lambda images: jax.nn.softmax(10 * LOGITS(images)), IMAGES, LABELS, weak, key=KEY,
            image_range=(0.0, 1.0), devices=jax.devices()[:count],
        )
        for count in (1, 8)
    ]  # fmt: skip
    assert "probabilities_not_logits" in {flag.name for flag in found[0].flags}
    assert found[0].flags == found[1].flags
    assert found[0].diagnosis.model_calls == found[1].diagnosis.model_calls > 0


@pytest.mark.slow
def test_devices_without_an_unfinished_example_compute_nothing():
    """Eight of 61 images still stand: the rows of the first of four devices hold them all."""
    fallen = np.arange(COUNT) >= 8

    def computed(count):
        run = evaluator(
            ATTACKS[1:], batch_size=8, image_range=(0.0, 1.0), diagnosis=False, devices=jax.devices()[:count]
        )
        (found,) = run(LOGITS, IMAGES, LABELS, broken=fallen, key=KEY).attacks
        assert found.attacked == 8
        rows = 8 * count
        return found.model_calls - -(-(found.broken + found.rejected) // rows) * rows  # without the fresh check

    assert computed(4) == computed(1) > 0


@pytest.mark.slow
def test_images_on_demand_are_read_a_few_at_a_time(run, alone):
    sizes = []

    def read(indices):
        sizes.append(len(indices))
        return list(IMAGES[indices])  # what NumPy makes an array of

    result = run(LOGITS, OnDemand(read, IMAGES.shape), LABELS, key=KEY)
    assert [outcome(attack) for attack in result.attacks] == alone
    assert max(sizes) == 8
    # The clean pass reads all, an attack those that it tries, and a compilation one.
    assert sum(sizes) <= COUNT + sum(attack.attacked for attack in result.attacks) + 10


@pytest.mark.slow
def test_an_attack_continues_in_the_middle_and_is_shared(run, alone):
    kept = []

    def interrupted(attack, run):
        kept.append([])
        whole = run(keep=kept[-1].append)
        assert kept[-1][-1].finished.sum() == whole.attacked
        halfway = kept[-1][len(kept[-1]) // 2]
        assert 0 < halfway.finished.sum() < whole.attacked
        return run(halfway)

    def shared(attack, run):
        parts = []
        for index in range(3):
            with pytest.raises(ValueError, match="all processes"):
                run(share=(index, 3), gather=lambda found: parts.append(found) or found)
        assert sum(part.finished for part in parts).max() == 1
        return run(share=(0, 3), gather=lambda own: together([own, *parts[1:]]))

    for recall in (interrupted, shared):
        result = run(LOGITS, IMAGES, LABELS, key=KEY, recall=recall)
        assert [outcome(attack) for attack in result.attacks] == alone
    with pytest.raises(ValueError, match="begun must be what 'pgd' has found on these examples"):
        run(LOGITS, IMAGES, LABELS, key=KEY, recall=lambda _, run: run(Found.nothing(3)))


def found(finished, broken):
    finished, broken = np.isin(np.arange(6), finished), np.isin(np.arange(6), broken)
    calls = np.where(finished, 10, 0)
    return Found(finished, broken, broken, calls, {"linf": np.where(broken, 0.5, 0).astype(np.float32)}, 7, 2.0, 1.0)


def test_parts_of_an_attack_are_put_together_in_any_order():
    parts = [found([0, 3], [3]), found([1], []), found([2, 5], [2, 5])]
    for order in itertools.permutations(parts):
        whole = together(order)
        assert np.flatnonzero(whole.finished).tolist() == [0, 1, 2, 3, 5]
        assert np.flatnonzero(whole.broken).tolist() == [2, 3, 5]
        assert whole.calls.sum() == 50
        assert (whole.model_calls, whole.seconds, whole.compile_seconds) == (21, 2.0, 1.0)
        assert whole.summary() == {"linf": {"mean": 0.5, "max": 0.5}}
    again = parts[2].after(parts[2])
    assert again.calls.tolist() == parts[2].calls.tolist()  # an example that two parts have counts once
    assert again.seconds == 4.0
    assert Found.nothing(6).after(parts[0]).broken.tolist() == parts[0].broken.tolist()


def test_devices_and_images_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match="devices must be one or more different ones"):
        devices_of([jax.devices()[0]] * 2)
    with pytest.raises(TypeError, match="devices must be of type Device"):
        devices_of([0])
    with pytest.raises(ValueError, match="image_range must be given for images on demand"):
        evaluate(LOGITS, OnDemand(lambda at: IMAGES[at], IMAGES.shape), LABELS, ATTACKS, key=KEY)
    with pytest.raises(ValueError, match="images must be read as float32 of shape"):
        OnDemand(lambda at: IMAGES[at].astype(np.float64), IMAGES.shape)[:3]
