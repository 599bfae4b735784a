"""Penalty, attack and evaluation under each criterion, against closed forms and grids."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import ramps

import deformreg
from deformreg import affine, attacks, criteria, gradient_penalty, linf
from deformreg.evaluation import reports, suites

COUNT, RADIUS = 12, 0.5
IMAGES, SLOPES, WEIGHTS = ramps(COUNT)  # a displacement by dx raises pixels by slope * dx, except at the border
KEY = jax.random.key(0)


class Problem(NamedTuple):
    """A model of ramps under a criterion: what is right without a flow, what the worst flow breaks, the penalties."""

    criterion: criteria.Criterion
    model: Callable
    labels: np.ndarray
    correct: np.ndarray
    breakable: np.ndarray
    penalties: np.ndarray


def regression():
    """The weighted sum of the pixels: the worst flow changes it by ``radius * slope * sum |weights|``."""
    outputs = (IMAGES[..., 0] * WEIGHTS).sum(axis=(1, 2))
    reach = RADIUS * SLOPES * np.abs(WEIGHTS).sum()
    labels = outputs + np.linspace(-2, 2, COUNT, dtype=np.float32) * np.median(reach)
    errors = np.abs(outputs - labels)
    bound = float(np.sort(errors)[-3] + 0.01)  # two clean errors
    return Problem(
        criteria.regression(bound),
        lambda images: jnp.sum(images[..., 0] * WEIGHTS, axis=(1, 2)),
        labels,
        errors <= bound,
        errors + reach > bound,
        errors**2 * SLOPES**2 * (WEIGHTS**2).sum(),
    )


def multilabel():
    """Two weighted sums and a constant: the worst flow turns the label that it reaches more easily."""
    weights = np.stack([WEIGHTS, 0.5 * WEIGHTS[::-1], 0 * WEIGHTS])
    offsets = np.array([1.0, -1.0, 1.0], np.float32) * RADIUS * np.abs(WEIGHTS).sum()
    outputs = np.einsum("nhw,khw->nk", IMAGES[..., 0], weights) + offsets
    labels = outputs > 0
    labels[:2, 2] = False  # clean errors
    certainty = np.where(labels, outputs, -outputs)
    reach = RADIUS * SLOPES[:, None] * np.abs(weights).sum(axis=(1, 2))
    sensitivity = np.where(labels, -1, 1) / (1 + np.exp(certainty)) / 3  # of the loss to each output
    slopes = np.einsum("nk,khw->nhw", sensitivity, weights) * SLOPES[:, None, None]
    return Problem(
        criteria.multilabel(),
        lambda images: jnp.einsum("nhw,khw->nk", images[..., 0], weights) + offsets,
        labels,
        (certainty > 0).all(axis=1),
        (certainty < reach).any(axis=1),
        (slopes**2).sum(axis=(1, 2)),
    )


def segmentation():
    """Class 1 where a pixel is bright: every pixel moves on its own, so a grid of shifts finds each one's worst."""
    labels = (IMAGES[..., 0] > 2).astype(int)
    labels[::3, :1] ^= 1  # some pixels are wrong without a flow
    labels[0] ^= 1
    columns = np.clip(np.arange(6) + np.linspace(-RADIUS, RADIUS, 41)[:, None], 0, 5)
    predicted = (SLOPES[:, None] * columns[:, None])[:, :, None, :] > 2  # shifts, examples, rows, columns
    shares = ((IMAGES[..., 0] > 2) == labels).mean(axis=(1, 2))
    probability = 1 / (1 + np.exp(-4 * (IMAGES[..., 0].astype(np.float64) - 2)))
    slopes = SLOPES[:, None, None] * (np.arange(6) < 5)
    return Problem(
        criteria.segmentation(0.7),
        lambda images: jnp.concatenate([jnp.zeros_like(images), 4 * (images - 2)], axis=-1),
        labels,
        shares >= 0.7,
        (predicted == labels).all(axis=0).mean(axis=(1, 2)) < 0.7,
        ((4 * (probability - labels) * slopes / 24) ** 2).sum(axis=(1, 2)),
    )


PROBLEMS = {make.__name__: make() for make in (regression, multilabel, segmentation)}
problems = pytest.mark.parametrize("name", PROBLEMS)
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in list(PROBLEMS)[1:]]
one_fast = pytest.mark.parametrize("name", ["regression", *OTHERS])


@one_fast
def test_penalties_have_their_closed_form(name):
    problem = PROBLEMS[name]
    penalties, losses = gradient_penalty(lambda x: problem.criterion.loss(problem.model(x), problem.labels), IMAGES)
    np.testing.assert_allclose(penalties, problem.penalties, rtol=2e-4, atol=1e-6)
    assert losses.shape == (COUNT,)


@one_fast
def test_attack_and_evaluation_find_what_the_worst_flow_breaks(name):
    criterion, model, labels, correct, breakable, _ = PROBLEMS[name]
    assert 0 < correct.sum() < COUNT
    assert 0 < (correct & breakable).sum() < correct.sum()
    attack = attacks.pgd(ball=linf(RADIUS), num_steps=8, keep="any", start="random", restarts=2)
    found = jax.jit(lambda key: attack.run(model, IMAGES, labels, key, criterion=criterion))(KEY)
    np.testing.assert_array_equal(found.success, breakable | ~correct)
    np.testing.assert_array_equal(criterion.broken(model(found.images), labels), found.success | ~correct)
    np.testing.assert_array_equal(found.labels, labels)
    evaluation = deformreg.evaluate(
        model, IMAGES, labels, [attack], key=KEY, criterion=criterion, batch_size=4, diagnosis=False
    )
    np.testing.assert_array_equal(evaluation.correct_mask, correct)
    np.testing.assert_array_equal(evaluation.standing_mask, correct & ~breakable)
    assert evaluation.clean_accuracy == correct.mean()
    assert evaluation.robust_accuracy == (correct & ~breakable).mean()
    assert evaluation.attacks[0].rejected == 0
    assert criterion.name in reports.to_markdown(evaluation)
    assert reports.to_dict(evaluation)["criterion"] == criterion.name


def test_attacks_that_need_one_class_per_image_refuse_in_one_line():
    criterion, model, labels, *_ = PROBLEMS["segmentation"]
    refused = [
        attacks.adef(),
        attacks.apgd(ball=linf(RADIUS), loss="dlr"),
        attacks.apgd(ball=linf(RADIUS), num_targets=2),
        attacks.transfer(attacks.pgd(ball=linf(RADIUS), num_steps=1, loss="dlr"), model),
    ]
    for attack in refused:
        with pytest.raises(
            ValueError, match=f"attack '{attack.name}' must have one class per image, got the criterion"
        ):
            attack.run(model, IMAGES, labels, KEY, criterion=criterion)
    with pytest.raises(ValueError, match=r"attack 'adef' must have one class .* suites have suited_to"):
        deformreg.evaluate(model, IMAGES, labels, refused[:1], key=KEY, criterion=criterion)
    pgd = attacks.pgd(ball=linf(RADIUS), num_steps=1)
    targets = np.zeros(COUNT, int)
    with pytest.raises(ValueError, match=r"targets must have one class per image, got .* leave them out"):
        pgd.run(model, IMAGES, labels, KEY, targets, criterion=criterion)
    with pytest.raises(TypeError, match=r"criterion must be of type Criterion, for example .* call it"):
        pgd.run(model, IMAGES, labels, KEY, criterion=criteria.segmentation)


def nearest(label_maps, shift):
    """Label maps that moved by ``shift`` pixels to the left; the edge is repeated."""
    columns = np.clip(np.floor(np.arange(label_maps.shape[2]) + shift + 0.5).astype(int), 0, label_maps.shape[2] - 1)
    return label_maps[:, :, columns]


def edges(count=6, size=9):
    """Random vertical stripes, their classes, and a model that takes a pixel of brightness 0.3 for bright."""
    stripes = np.random.default_rng(5).integers(0, 2, (count, 1, size)).repeat(3, axis=1)
    stripes[0] = 0
    images = stripes[..., None].astype(np.float32)
    return images, stripes, lambda images: jnp.concatenate([jnp.zeros_like(images), 20 * (images - 0.3)], axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("follow", [True, False])
def test_label_maps_are_warped_along_where_the_criterion_says_so(follow):
    images, labels, model = edges()
    shifts, shares = np.linspace(-1, 1, 21), []
    for shift in shifts:
        moved = np.array([[np.interp(np.clip(np.arange(9) + shift, 0, 8), np.arange(9), row) for row in image]
                          for image in images[..., 0]])  # fmt: skip
        shares.append(((moved > 0.3) == (nearest(labels, shift) if follow else labels)).mean(axis=(1, 2)))
    worst = np.min(shares, axis=0)
    criterion = criteria.segmentation(0.75, warp_labels=follow)
    grid = attacks.rotation_translation(grid=(1, 1, 21), max_pixels=1.0, boundary="edge")
    found = jax.jit(lambda key: grid.run(model, images, labels, key, criterion=criterion))(KEY)
    np.testing.assert_array_equal(found.success, worst < 0.75)
    assert 0 < found.success.sum() < len(images)
    expected = np.concatenate([nearest(labels[i : i + 1], found.params[i, 2]) for i in range(len(labels))])
    np.testing.assert_array_equal(found.labels, np.where(found.success[:, None, None] & follow, expected, labels))
    # Gradients find no more than the grid, and nearly as much.
    ascent = attacks.apgd(ball=linf(1.0), num_steps=20, restarts=3, perturbation=affine(parameters=("dx",)))
    suite = [grid._replace(name="grid"), ascent]
    evaluation = deformreg.evaluate(
        model, images, labels, suite, key=KEY, criterion=criterion, batch_size=3, diagnosis=False, independent=True
    )
    grid_outcome, ascent_outcome = evaluation.attacks
    np.testing.assert_array_equal(grid_outcome.broken_mask, worst < 0.75)
    assert ascent_outcome.broken >= grid_outcome.broken - 1
    assert not (ascent_outcome.broken_mask & (worst > 0.8)).any()
    assert evaluation.attacks[0].rejected == evaluation.attacks[1].rejected == 0


# Beyond half a pixel a label may change its place, from 0.3 pixels on a prediction does: all break some of `edges`.
FAR = linf(0.8)
ATTACKS = {
    "pgd": attacks.pgd(ball=FAR, num_steps=3, keep="any"),
    "apgd": attacks.apgd(ball=FAR, num_steps=4, loss="margin"),
    "greedy": attacks.greedy(ball=linf(RADIUS), num_steps=4),
    "random": attacks.random_fields(ball=FAR, num_fields=5),
    "square": attacks.square(ball=linf(RADIUS), num_queries=10),
    "grid": attacks.rotation_translation(grid=(3, 2, 2), max_component=0.8),
    "elastic": attacks.elastic(0.8, num_steps=4),
    "stadv": attacks.stadv(num_evaluations=60, ball=FAR),
    "spsa": attacks.spsa(ball=FAR, num_steps=6, num_samples=20),
    "nes": attacks.nes(ball=FAR, num_steps=6, num_samples=20, keep="last"),
    "transfer": attacks.transfer(attacks.pgd(ball=FAR, num_steps=3, keep="best"), edges()[2]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_takes_another_criterion(name):
    images, labels, model = edges()
    criterion = criteria.segmentation(0.9, warp_labels=True, outside=-1)
    attack = ATTACKS[name]
    run = jax.jit(lambda images, labels: attack.run(model, images, labels, KEY, criterion=criterion))
    found = run(images, labels)
    success = np.asarray(found.success)
    assert 0 < success.sum() < len(images)
    np.testing.assert_array_equal(criterion.broken(model(found.images), found.labels), success)
    np.testing.assert_array_equal(found.labels[~success], labels[~success])
    field = attack.perturbation.field(found.params, jnp.asarray(images))
    moved = criterion.warp_labels(jnp.asarray(labels), field)
    np.testing.assert_array_equal(found.labels[success], moved[success])
    if name not in ("spsa", "nes"):  # which break them before a label moves
        assert (moved != labels)[success].any()
    others = run(images[::-1], labels[::-1])
    if name == "pgd":  # draws nothing
        np.testing.assert_array_equal(others.success[::-1], success)


@pytest.mark.slow
@problems
def test_a_healthy_model_raises_no_flag(name):
    criterion, model, labels, correct, *_ = PROBLEMS[name]
    weak = suites.Suite({"pgd": lambda radius: attacks.pgd(ball=linf(radius), num_steps=8, keep="any")})
    run = deformreg.evaluator(weak, batch_size=6, criterion=criterion)
    evaluation = run(model, IMAGES, labels, key=KEY, radius=RADIUS)
    assert evaluation.clean_accuracy == correct.mean()
    # Within any budget the border columns stay, which the ramps' models ignore: with one class per image the flag of
    # that is raised; nothing else is amiss.
    assert {flag.name for flag in evaluation.flags} <= ({"unbounded_attack_fails"} if criterion.one_class else set())
    curve = deformreg.accuracy_curve(run, model, IMAGES, labels, [0.1, 0.5, 2.0], key=KEY)
    assert curve.accuracies[0] == correct.mean()
    assert curve.accuracies[2] <= evaluation.robust_accuracy
    assert list(curve.accuracies) == sorted(curve.accuracies, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "squash"), [("multilabel", jax.nn.sigmoid), ("segmentation", jax.nn.softmax)])
def test_probabilities_and_missing_numbers_are_flagged(name, squash):
    criterion, model, labels, *_ = PROBLEMS[name]
    for spoilt, flag in (
        (lambda images: squash(model(images)), "probabilities_not_logits"),
        (lambda images: model(images).at[3].set(jnp.nan), "logits_not_finite"),
    ):
        attack = attacks.pgd(ball=linf(RADIUS), num_steps=1)
        found = deformreg.evaluate(spoilt, IMAGES, labels, [attack], key=KEY, criterion=criterion, batch_size=12)
        assert flag in {raised.name for raised in found.flags}
