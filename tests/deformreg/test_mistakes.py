"""The likeliest mistakes of users: each ends at once in one line that names the culprit and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import perceptron

import deformreg as d
from deformreg import attacks
from deformreg.evaluation import accuracy_curve, evaluator, suites

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).random((6, 5, 6, 1)).astype(np.float32)
LOGITS = perceptron(30)
LABELS = np.array([0, 1, 2, 3, 4, 0])
BALL = d.linf(0.1)
PGD = attacks.pgd(ball=BALL, num_steps=2, name="pgd")
WIDE = np.zeros((6, 3, 32, 32), np.float32)  # [n, c, h, w]


def evaluate(logits_fn=LOGITS, images=IMAGES, labels=LABELS, chosen=(PGD,), *, key=KEY, **options):
    return d.evaluate(logits_fn, images, labels, chosen, key=key, diagnosis=False, **options)


def losses(images):
    return images.sum(axis=(1, 2, 3))


def in_numpy(images):
    return np.asarray(images).reshape(6, -1)[:, :5]


def branching(images):
    return LOGITS(images) if images.mean() > 0 else -LOGITS(images)


MISTAKES = {
    # The images.
    "channels first": (lambda: evaluate(images=WIDE), "looks like [n, c, h, w]", "transpose them to (0, 2, 3, 1)"),
    "channels first, penalty": (lambda: d.gradient_penalty(losses, WIDE), "looks like [n, c, h, w]", "transpose"),
    "bytes": (lambda: evaluate(images=(255 * IMAGES).astype(np.uint8)), "uint8", "images.astype(float32) / 255"),
    "0 to 255": (lambda: evaluate(images=255 * IMAGES, image_range=(0, 1)), "images must lie in image_range", "scale"),
    "one image": (lambda: d.gradient_penalty(losses, IMAGES[0, ..., 0]), "images must have shape [n, h, w, c]"),
    "no images": (lambda: evaluate(images=IMAGES[:0], labels=LABELS[:0]), "at least one example"),
    "no images, attack": (lambda: PGD.run(LOGITS, IMAGES[:0], LABELS[:0], KEY), "at least one example"),
    "not a number": (lambda: evaluate(images=np.where(IMAGES > 0.99, np.nan, IMAGES)), "must be finite", "index"),
    "weights for images": (lambda: evaluate(images={"kernel": IMAGES}), "images must be an array, got a dict of 1"),
    "images and labels swapped": (lambda: evaluate(images=LABELS, labels=IMAGES), "images must be floating point"),
    "model and images swapped": (lambda: evaluate(IMAGES, LOGITS), "images must be an array of numbers", "function"),
    "random start of 0 to 255": (lambda: d.random_start(KEY, 255 * IMAGES), "image_range (0.0, 1.0)", "name the range"),
    "random start of normalized": (lambda: d.random_start(KEY, 4 * IMAGES - 2), "images must lie in", "scale them"),
    "range as text": (lambda: evaluate(image_range="01"), "image_range must be (low, high), got '01'"),
    "range reversed": (lambda: evaluate(image_range=(1, 0)), "low < high"),
    # The labels.
    "labels from 1": (lambda: evaluate(labels=LABELS + 1), "labels must be in [0, 5), got 5", "subtract 1"),
    "one-hot labels": (lambda: evaluate(labels=np.eye(5, dtype=int)[LABELS]), "give labels.argmax(axis=1)"),
    "float labels": (lambda: evaluate(labels=LABELS.astype(float)), "labels must be integers", "labels.astype(int)"),
    "labels in a column": (lambda: evaluate(labels=LABELS[:, None]), "give labels[:, 0]"),
    "fewer labels": (lambda: evaluate(labels=LABELS[:4]), "labels must have shape (6,)", "got (4,)"),
    "labels outside, loss": (lambda: d.cross_entropy(LOGITS(IMAGES), LABELS + 1), "labels must be in [0, 5)"),
    "one-hot labels, margin": (lambda: d.losses.margin(LOGITS(IMAGES), np.eye(5)[LABELS]), "labels.argmax(axis=1)"),
    "loss's arguments swapped": (lambda: d.cross_entropy(LABELS, LOGITS(IMAGES)), "logits must be floating point"),
    # The model.
    "a tuple of logits": (lambda: evaluate(lambda x: (LOGITS(x), 1)), "a tuple of 2", "the array of logits alone"),
    "one logit": (lambda: evaluate(lambda x: LOGITS(x)[:, 0]), "one per image", "jnp.stack"),
    "logits on another axis": (lambda: evaluate(lambda x: LOGITS(x).T), "shape (4, classes), got shape (5, 4)"),
    "classes for logits": (lambda: evaluate(lambda x: LOGITS(x).argmax(1)), "logits_fn must return logits", "got one"),
    "losses for logits": (lambda: evaluate(losses), "logits_fn must return logits", "shape (4,)"),
    "NumPy model": (lambda: evaluate(in_numpy), "logits_fn must compute with jax.numpy", "interop.from_numpy"),
    "NumPy model, attack": (lambda: PGD.run(in_numpy, IMAGES, LABELS, KEY), "jax.numpy", "from_torch"),
    "NumPy model, penalty": (lambda: d.gradient_penalty(lambda x: in_numpy(x)[:, 0], IMAGES), "loss_fn must", "numpy"),
    "a model with if": (lambda: evaluate(branching), "logits_fn must be a function that jax.jit can trace", "lax.cond"),
    "no function": (lambda: evaluate("resnet"), "logits_fn must be a function, got 'resnet'"),
    # Losses and penalties.
    "mean loss": (lambda: d.gradient_penalty(lambda x: losses(x).mean(), IMAGES), "one loss per example", "leave out"),
    "logits for losses": (lambda: d.gradient_penalty(LOGITS, IMAGES), "one loss per example, shape (6,), got"),
    "mean loss, steps": (lambda: d.multi_step(jnp.mean, IMAGES, ball=BALL, num_steps=1), "one loss per", "leave out"),
    "auxiliary output": (lambda: d.gradient_penalty(lambda x: (losses(x), 1), IMAGES), "pass has_aux=True"),
    # Perturbations and budgets.
    "a family not called": (
        lambda: d.gradient_penalty(losses, IMAGES, d.flow),
        "the function flow: call it, flow(...)",
    ),
    "a family's name": (lambda: d.gradient_penalty(losses, IMAGES, "flow"), "type Perturbation", "got 'flow'"),
    "a number for a ball": (lambda: attacks.pgd(ball=0.5, num_steps=2), "type Ball", "deformreg.linf(0.5), got 0.5"),
    "a ball not called": (lambda: attacks.apgd(ball=d.linf), "call it, linf(...)"),
    "an infinite radius": (lambda: d.linf(np.inf), "radius must be finite, got inf"),
    "an infinite suite": (lambda: suites.standard(np.inf), "radius must be finite, got inf"),
    "a negative radius": (lambda: d.l2(-0.5), "radius must be at least 0, got -0.5"),
    "a radius as text": (lambda: d.linf("0.5"), "radius must be a number, got '0.5'"),
    "flow of another layout": (
        lambda: d.warp(IMAGES, np.zeros((6, 2, 5, 6), np.float32)),
        "flow must have shape (6, 5,",
    ),
    "integer flow": (lambda: d.warp(IMAGES, np.zeros((6, 5, 6, 2), int)), "flow must be floating point", "astype"),
    # Attacks, suites and the rest.
    "an attack alone": (lambda: evaluate(chosen=PGD), "'pgd' alone", "give [attack]"),
    "an attack not called": (lambda: evaluate(chosen=[attacks.pgd]), "call it, pgd(...)"),
    "a suite's name": (lambda: evaluate(chosen="standard"), "got 'standard'", "suites.standard(0.5)"),
    "a suite not called": (lambda: evaluate(chosen=suites.standard), "suites.standard(0.5)"),
    "a number for attacks": (lambda: evaluate(chosen=0.5), "attacks must be a list", "suites.standard(0.5)"),
    "a suite for an evaluator": (
        lambda: accuracy_curve(suites.quick, LOGITS, IMAGES, LABELS, [0.1], key=KEY),
        "run must be an evaluator",
        "evaluator(suite",
    ),
    "one radius for a curve": (
        lambda: accuracy_curve(evaluator(suites.quick), LOGITS, IMAGES, LABELS, 0.1, key=KEY),
        "radii must be a list of numbers, got 0.1",
    ),
    "a seed for a key": (lambda: evaluate(key=0), "key must be a JAX random key", "jax.random.key(0), got 0"),
    "a seed for a key, attack": (lambda: PGD.run(LOGITS, IMAGES, LABELS, 3), "jax.random.key(0), got 3"),
    "no key": (lambda: d.one_step(losses, IMAGES, ball=BALL, start="random"), "key must be a JAX random key", "None"),
    "half a step": (lambda: attacks.pgd(ball=BALL, num_steps=2.5), "num_steps must be an integer, got 2.5"),
    "a number for a law": (lambda: d.certify(LOGITS, IMAGES, law=0.1, key=KEY), "SmoothingLaw", "gaussian(0.3)"),
    "a law that was not called": (
        lambda: d.certification.smoothed_votes(LOGITS, IMAGES, law=d.certification.gaussian, key=KEY),
        "law must be of type SmoothingLaw",
        "call it, gaussian(...)",
    ),
    "a bound in words": (lambda: d.flow(within="half"), "within must be a number", "'half'"),
    "a bound below zero": (lambda: d.flow(within=-1.0), "within must be at least 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_line_with_culprit_and_remedy(name):
    call, *fragments = MISTAKES[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_probabilities_in_a_loss_are_named():
    with pytest.warns(UserWarning, match="logits look like probabilities.*leave out the softmax"):
        d.cross_entropy(jax.nn.softmax(LOGITS(IMAGES)), LABELS)


def test_labels_outside_the_classes_are_no_finite_loss_where_they_cannot_be_checked():
    found = jax.jit(d.cross_entropy)(LOGITS(IMAGES), LABELS + 1)
    np.testing.assert_array_equal(np.isnan(found), LABELS == 4)


def test_a_random_start_keeps_the_range_of_images_that_it_cannot_check():
    images = 255 * jnp.asarray(IMAGES)
    moved = jax.jit(d.random_start)(KEY, images)
    assert moved.max() > 100
    assert moved.max() <= images.max()
