"""Certificates: closed forms, what they promise against attacks, and that no batch or seed sneaks in."""

import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import linear_model, perceptron
from jax.tree_util import Partial
from scipy import stats

from deformreg import Perturbation, additive, affine, certified_accuracy, certify, flow, l2
from deformreg.attacks import projected_ascent
from deformreg.certification import (
    Certificates,
    Progress,
    SmoothingLaw,
    Votes,
    gaussian,
    smoothed_predictions,
    smoothed_votes,
    uniform,
)
from deformreg.certification.votes import tally
from deformreg.losses import margin
from deformreg.statistics import clopper_pearson_bound, wilson_interval

pytestmark = pytest.mark.usefixtures("strict_promotion")

KEY = jax.random.key(11)
SHAPE = (3, 4, 1)
PLANE = (0.7, -0.4)  # slopes of `plane` along y and x
GAUSSIAN = gaussian(0.5)


def sample_images(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def linear(count):
    """A linear model, images, and their signed distances to its hyperplane: positive on the side of class 1."""
    _, weights = linear_model(SHAPE)
    images = sample_images(count)

    def logits_fn(images):
        gap = jnp.sum(images * weights[None], axis=(1, 2, 3))
        return jnp.stack([jnp.zeros_like(gap), gap], axis=1)

    return logits_fn, images, np.sum(images * weights, axis=(1, 2, 3)) / np.linalg.norm(weights), weights


def plane(gap):
    """An image whose middle pixel falls by ``PLANE`` per pixel of a translation, and a model that asks it for `gap`."""
    y, x = np.mgrid[0:11, 0:11] - 5.0
    image = (PLANE[0] * y + PLANE[1] * x)[None, :, :, None].astype(np.float32)

    def logits_fn(images):
        middle = images[:, 5, 5, 0]
        return jnp.stack([gap - middle, middle - gap], axis=1)

    return logits_fn, image


# Closed forms.


def test_a_linear_model_is_certified_up_to_its_hyperplane_and_not_beyond():
    """The smoothed linear model is the linear model; the exact radius is the distance. On the plane it abstains."""
    logits_fn, images, distances, weights = linear(12)
    images[0] -= distances[0] * weights / np.linalg.norm(weights)
    distances[0] = 0
    told = []
    found = certify(
        logits_fn, images, law=GAUSSIAN, perturbation=additive(), num_samples=8000, key=KEY, progress=told.append
    )  # fmt: skip
    assert (found.predictions[0], found.radii[0]) == (-1, 0)
    assert 0.45 < found.lower_bounds[0] <= 0.5
    certified = found.predictions >= 0
    np.testing.assert_array_equal(certified, np.abs(distances) > 0.03)
    np.testing.assert_array_equal(found.predictions[certified], distances[certified] > 0)
    within = certified & (np.abs(distances) < 0.9 * found.ceiling)
    assert within.sum() >= 5
    assert np.all(found.radii[certified] < np.abs(distances)[certified])
    assert np.all(found.radii[within] > np.abs(distances)[within] - 0.1)
    assert np.all(found.lower_bounds[certified] < stats.norm.cdf(np.abs(distances) / 0.5)[certified])
    assert found.norm == "l2 norm of the parameters"
    assert [progress[:2] for progress in told] == [(index, 12) for index in range(1, 13)]
    assert told[-1] == Progress(12, 12, certified.mean())


def test_one_sigma_per_parameter_certifies_an_ellipsoid():
    sigma = (0.2, 0.9)
    logits_fn, image = plane(gap=0.4)
    family = affine(parameters=("dy", "dx"))
    found = certify(
        logits_fn, image, law=gaussian(sigma), perturbation=family, num_samples=8000, key=KEY
    )  # fmt: skip
    exact = 0.4 / np.linalg.norm(np.multiply(PLANE, sigma))
    assert found.predictions.tolist() == [0]
    assert 0.93 * exact < found.radii[0] < exact
    assert found.norm == "l2 norm of the parameters, each divided by its sigma"


def test_a_uniform_law_in_one_parameter_certifies_the_distance_itself():
    gaps = np.array([0.2, 0.5, 0.9])
    logits_fn, image = plane(gap=gaps[0])
    images = image - (gaps - gaps[0])[:, None, None, None].astype(np.float32)
    family = affine(parameters=("dy",))
    found = certify(
        logits_fn, images, law=uniform(1.5), perturbation=family, num_samples=8000, key=KEY
    )  # fmt: skip
    exact = gaps / PLANE[0]
    assert np.all(found.radii < exact)
    assert np.all(found.radii > exact - 0.08)
    assert found.norm == "l1 norm of the parameters"


def test_a_uniform_law_with_widths_of_their_own_certifies_the_weighted_l1_norm():
    widths = np.array([0.5, 1.5])
    logits_fn, image = plane(gap=0.5)
    family = affine(parameters=("dy", "dx"))
    found = certify(
        logits_fn, image, law=uniform(widths), perturbation=family, num_samples=8000, key=KEY
    )  # fmt: skip
    cheapest = 0.5 / np.max(np.abs(PLANE) * widths)  # the l1 ball touches the line at a corner
    assert 0.3 < found.radii[0] < cheapest
    draws = np.abs(uniform(widths).noise(KEY, np.zeros((5000, 2), np.float32)))
    np.testing.assert_allclose(draws.max(axis=0), widths, rtol=0.01)


def test_a_unanimous_vote_reaches_the_ceiling():
    def sure(images):
        return jnp.stack([0 * images[:, 0, 0, 0], 1 + 0 * images[:, 0, 0, 0]], axis=1)

    found = certify(sure, sample_images(2), law=gaussian(2.0), perturbation=additive(), key=KEY)
    bound = 0.001 ** (1 / 10_000)
    np.testing.assert_allclose(found.radii, 2 * NormalDist().inv_cdf(bound), rtol=1e-9)
    assert found.ceiling == pytest.approx(found.radii[0], rel=1e-9)
    assert 3.15 < found.ceiling / 2 < 3.25
    assert uniform(2.0).radius(1.0) == 2.0


# Abstentions and errors.


def test_logits_that_are_not_finite_answer_nothing():
    """A model that is NaN under two draws in five keeps its class, but only three fifths of the votes."""

    def logits_fn(images):
        level = images[:, 0, 0, 0]
        return jnp.stack([jnp.where(level > 0.5, jnp.nan, 1.0), 0 * level], axis=1)

    images = np.array([0.0, 9.0], np.float32).reshape(2, 1, 1, 1)
    found = certify(logits_fn, images, law=uniform(2.5), perturbation=additive(), key=KEY)
    assert found.predictions.tolist() == [0, -1]
    assert 0.57 < found.lower_bounds[0] < 0.6
    assert found.lower_bounds[1] == found.radii[1] == 0


def test_a_class_that_is_masked_out_takes_no_votes_from_the_others():
    logits_fn, images, *_ = linear(4)
    options = {"law": gaussian(3.0), "perturbation": additive(), "num_samples": 500, "key": KEY}

    def masked(images):
        return jnp.pad(logits_fn(images), [(0, 0), (1, 0)], constant_values=-jnp.inf)

    plain, found = (np.asarray(smoothed_votes(each, images, **options)) for each in (logits_fn, masked))
    np.testing.assert_array_equal(found, np.pad(plain, [(0, 0), (1, 0)]))
    plain, found = (certify(each, images, **options) for each in (logits_fn, masked))
    np.testing.assert_array_equal(found.radii, plain.radii)
    np.testing.assert_array_equal(found.predictions, np.where(plain.predictions < 0, -1, plain.predictions + 1))
    assert found.radii.any()
    nothing = smoothed_votes(
        lambda images: masked(images) * jnp.array([1.0, -jnp.inf, jnp.inf])[None], images, **options
    )
    assert not np.any(nothing)


def test_wrong_answers_and_abstentions_count_nowhere():
    radii = np.array([1.0, 0.5, 0.8, 0.0])
    found = Certificates(np.array([0, 1, 1, -1]), np.full(4, 0.9), radii, "l2 norm", 2.0, 100, 1000, 0.001, 4400, 1.0)
    curve = certified_accuracy(found, np.array([0, 1, 0, 1]), [0.0, 0.5, 0.99, 1.0])
    assert curve.accuracies == (0.5, 0.25, 0.25, 0.0)  # a radius certifies what is smaller
    assert curve.intervals == tuple(wilson_interval(count, 4) for count in (2, 1, 1, 0))
    assert curve.mean_radius == pytest.approx(1.5 / 4)
    assert curve.examples == 4


# The promise.


def test_the_vote_holds_inside_the_radius_and_falls_beyond_the_hyperplane():
    logits_fn, images, distances, weights = linear(8)
    found = certify(logits_fn, images, law=GAUSSIAN, perturbation=additive(), num_samples=4000, key=KEY)
    away = -np.sign(distances)[:, None, None, None] * (weights / np.linalg.norm(weights))[None]

    @jax.jit
    def votes(lengths):
        params = (lengths[:, None, None, None] * away).astype(np.float32)
        return smoothed_votes(
            logits_fn, images, law=GAUSSIAN, perturbation=additive(), num_samples=4000, params=params,
            key=jax.random.key(3),
        )  # fmt: skip

    certified = found.predictions >= 0
    for lengths, holds in ((0.999 * found.radii, True), (1.1 * np.abs(distances) + 0.1, False)):
        same = np.argmax(votes(lengths), axis=1) == found.predictions
        assert np.all(same[certified] == holds)


@pytest.mark.parametrize(
    ("family", "law"),
    [(flow(), GAUSSIAN), (affine(parameters=("rotation",)), uniform(0.6))],
    ids=["flow", "rotation"],
)
def test_no_attack_inside_the_warp_beats_a_certificate(family, law):
    """Gradient ascent on the mean margin under noise, projected to just inside each image's own radius."""
    logits_fn = perceptron(30)
    images = np.random.default_rng(2).random((6, 5, 6, 1)).astype(np.float32)
    found = certify(logits_fn, images, law=law, perturbation=family, num_samples=1000, key=KEY)
    certified = found.predictions >= 0
    assert certified.sum() >= 2
    images, answers = images[certified], found.predictions[certified]
    radii = jnp.asarray(0.999 * found.radii[certified], jnp.float32)
    identity = family.init(images)
    draws = jax.vmap(lambda key: law.noise(key, identity))(jax.random.split(jax.random.key(5), 16))

    def objective(params):
        of_draw = lambda draw: margin(logits_fn(family.apply(params + draw, images)), answers)  # noqa: E731
        return jnp.mean(jax.vmap(of_draw)(draws), axis=0)

    @jax.jit
    def attack():
        # The l1 norm of one parameter is its l2 norm: one ball serves both laws.
        found = projected_ascent(objective, identity, ball=l2(radii), num_steps=8, step_size=radii / 4, keep="best")
        votes = smoothed_votes(
            logits_fn, images, law=law, perturbation=family, params=found.params, key=jax.random.key(6)
        )  # fmt: skip
        return objective(found.params) - objective(identity), votes

    gains, votes = attack()
    assert np.max(gains) > 0.01
    np.testing.assert_array_equal(np.argmax(votes, axis=1), answers)


# Answers from draws.


def stepped(shares):
    """A model that answers its classes with these probabilities under noise that is uniform in [-0.5, 0.5]."""
    ends = np.cumsum(shares)[:-1] - 0.5

    def logits_fn(images):
        answers = jnp.sum(images[:, 0, 0, 0, None] > ends.astype(np.float32)[None], axis=1)
        return jax.nn.one_hot(answers, len(shares))

    return logits_fn


@pytest.mark.parametrize("alpha", [0.2, 0.02])
@pytest.mark.parametrize("shares", [(0.501, 0.499), (0.1, 0.44, 0.46), (0.34, 0.33, 0.33), (0.2, 0.7, 0.1)])
def test_predictions_abstain_or_are_wrong_with_probability_alpha_at_most(shares, alpha):
    """3000 independent predictions; the majority of the same draws has no such bound."""
    images, options = np.zeros((3000, 1, 1, 1), np.float32), {"law": uniform(0.5), "perturbation": additive()}
    found = smoothed_predictions(stepped(shares), images, num_samples=60, alpha=alpha, key=KEY, **options)
    wrong = int(np.sum((found >= 0) & (found != np.argmax(shares))))
    assert stats.binomtest(wrong, len(found), alpha, alternative="greater").pvalue > 1e-3
    if max(shares) == 0.7:
        assert np.mean(found == 1) > 0.9
    else:
        votes = smoothed_votes(stepped(shares), images, num_samples=60, key=KEY, **options)
        assert np.mean(np.argmax(votes, axis=1) != np.argmax(shares)) > 0.3


def test_a_prediction_is_the_binomial_test_of_the_two_largest_counts():
    """Votes, params and keys are those of `smoothed_votes`; a draw without an answer counts for neither class."""
    images = np.random.default_rng(0).uniform(-0.5, 0.5, (40, 1, 1, 1)).astype(np.float32)
    params = np.random.default_rng(1).uniform(-0.3, 0.3, (40, 1, 1, 1)).astype(np.float32)

    def logits_fn(images):
        return jnp.where(images[:, 0, 0] > 0.9, jnp.nan, stepped((0.3, 0.4, 0.3))(images))

    options = {"law": gaussian(0.4), "perturbation": additive(), "params": params, "num_samples": 90, "key": KEY}
    votes = np.asarray(smoothed_votes(logits_fn, images, **options))
    assert votes.sum(axis=1).min() < 90
    for alpha in (0.5, 0.05, 0.001):
        expected = []
        for row in votes:
            second, first = np.sort(row)[-2:].tolist()
            rejected = stats.binomtest(first, first + second, 0.5).pvalue <= alpha
            expected.append(np.argmax(row) if rejected else -1)
        found = smoothed_predictions(logits_fn, images, alpha=alpha, batch_size=7, **options)
        np.testing.assert_array_equal(found, expected)
        assert 0 < np.mean(found >= 0) < 1


def test_a_model_that_never_answers_has_no_prediction():
    images = sample_images(2)
    found = smoothed_predictions(lambda images: images[:, 0, :, 0] * jnp.nan, images, law=GAUSSIAN, key=KEY)
    assert found.tolist() == [-1, -1]


def test_ten_unanimous_draws_do_not_reject_at_a_thousandth_and_eleven_do():
    with pytest.raises(ValueError, match=r"num_samples must be at least 11 to answer anything at alpha=0\.001: 10"):
        smoothed_predictions(perceptron(12), sample_images(1), law=GAUSSIAN, num_samples=10, key=KEY)
    sure = lambda images: jnp.stack([0 * images[:, 0, 0, 0], 1 + 0 * images[:, 0, 0, 0]], axis=1)  # noqa: E731
    found = smoothed_predictions(sure, sample_images(1), law=GAUSSIAN, num_samples=11, key=KEY)
    assert found.tolist() == [1]


def test_certificates_exist_for_an_alpha_close_to_one():
    sure = lambda images: jnp.stack([0 * images[:, 0, 0, 0], 1 + 0 * images[:, 0, 0, 0]], axis=1)  # noqa: E731
    found = certify(sure, sample_images(1), law=GAUSSIAN, alpha=1 - 1e-13, key=KEY)
    assert found.predictions.tolist() == [1]
    assert 0 < found.radii[0] == found.ceiling < 0.5 * 9


# Random numbers, batches, compiling.


def test_neither_the_batch_size_nor_the_other_images_matter():
    logits_fn, images, *_ = linear(5)
    options = {"law": gaussian(3.0), "perturbation": additive(), "num_selection": 30, "num_samples": 501}
    whole = certify(logits_fn, images, batch_size=10_000, key=KEY, **options)
    part = certify(logits_fn, images[:2], batch_size=64, key=KEY, **options)
    np.testing.assert_array_equal(part.predictions, whole.predictions[:2])
    np.testing.assert_array_equal(part.lower_bounds, whole.lower_bounds[:2])
    assert len(set(whole.lower_bounds.tolist())) > 1
    assert (whole.model_calls, part.model_calls) == (5 * 531, 2 * 9 * 64)


def test_an_interrupted_certification_continues_with_the_same_result():
    logits_fn, images, *_ = linear(5)
    options = {"law": gaussian(3.0), "perturbation": additive(), "num_selection": 30, "num_samples": 501, "key": KEY}
    kept, drawn = {}, []

    def recall(index, run):
        if index not in kept:
            if len(drawn) == 3:
                raise KeyboardInterrupt
            drawn.append(index)
            kept[index] = run()
        return kept[index]

    with pytest.raises(KeyboardInterrupt):
        certify(logits_fn, images, recall=recall, **options)
    drawn.clear()
    found, whole = certify(logits_fn, images, recall=recall, **options), certify(logits_fn, images, **options)
    assert drawn == [3, 4]
    for array, expected in zip(found[:3], whole[:3], strict=True):
        np.testing.assert_array_equal(array, expected)
    assert found[3:-1] == whole[3:-1]
    for impossible in (Votes(-1, 5), Votes(0, 502), Votes(0, -1)):
        with pytest.raises(ValueError, match="recall must return votes of 501 draws for a class"):
            certify(logits_fn, images, recall=lambda *_: impossible, **options)  # noqa: B023


def test_four_devices_certify_what_one_does():
    """Six images, in two turns; in the second one, two devices repeat an image."""
    logits_fn, images, *_ = linear(6)
    options = {"law": gaussian(3.0), "perturbation": additive(), "num_selection": 30, "num_samples": 501, "key": KEY}
    alone = certify(logits_fn, images, **options)
    four = certify(logits_fn, images, devices=jax.devices()[:4], **options)
    for array, expected in zip(four[:3], alone[:3], strict=True):
        np.testing.assert_array_equal(array, expected)
    assert (four.model_calls, alone.model_calls) == (8 * 2 * 512, 6 * 2 * 512)
    with pytest.raises(ValueError, match="devices must be one or more different ones"):
        certify(logits_fn, images, devices=[], **options)


def test_votes_are_a_function_of_the_key_and_differ_between_images():
    """Compiled or not, with the weights as arguments."""
    _, images, _, weights = linear(1)
    law, twins = gaussian(3.0), np.repeat(images, 4, axis=0)

    def apply(weights, images):
        gap = jnp.sum(images * weights[None], axis=(1, 2, 3))
        return jnp.stack([0 * gap, gap], axis=1)

    def votes(weights, seed):
        key = jax.random.key(seed)
        return smoothed_votes(Partial(apply, weights), twins, law=law, perturbation=additive(), key=key)

    compiled = jax.jit(votes)
    one, again, other = (np.asarray(compiled(weights, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(one, votes(weights, 1))
    assert not np.array_equal(one, other)
    assert len(set(one[:, 0].tolist())) > 1
    assert one.sum(axis=1).tolist() == [1000] * 4


def test_selection_and_bound_draw_disjoint_samples():
    logits_fn, images, *_ = linear(1)
    family = additive()

    def count(*sizes):
        options = {"noise": gaussian(3.0).noise, "perturbation": family, "batch_size": 7}
        return np.asarray(tally(logits_fn, images, KEY, sizes, params=family.init(images), **options))

    both = count(40, 60)
    assert both.sum(axis=1).tolist() == [40, 60]
    np.testing.assert_array_equal(both.sum(axis=0), count(100)[0])
    np.testing.assert_array_equal(both[0], count(40)[0])


def test_all_images_and_batches_share_one_compilation():
    traces = []

    def logits_fn(images):
        traces.append(images.shape)
        return jnp.stack([images[:, 0, 0, 0], images[:, 1, 1, 0]], axis=1)

    options = {"law": gaussian(0.1), "batch_size": 32, "key": KEY}
    certify(logits_fn, sample_images(1), num_samples=20, **options)
    single = len(traces)
    certify(logits_fn, sample_images(6), num_samples=200, **options)
    assert single <= 2  # the shape of the logits, then the loop's body
    assert len(traces) == 2 * single
    assert set(traces) == {(32, *SHAPE)}


def test_noise_keeps_its_tails_for_parameters_of_sixteen_bits():
    seen = []

    def noise(key, params):
        seen.extend(leaf.dtype for leaf in jax.tree.leaves(params))
        return GAUSSIAN.noise(key, params)

    logits_fn, images, *_ = linear(1)
    law = GAUSSIAN._replace(noise=noise)
    params = flow().init(images).astype(jnp.bfloat16)
    jax.eval_shape(lambda: smoothed_votes(logits_fn, images, law=law, params=params, key=KEY))
    assert set(seen) == {jnp.dtype("float32")}


def test_a_family_and_a_law_of_ones_own():
    """Two leaves of different shape; Laplace noise certifies the l1 norm: ``-scale * log(2 * (1 - probability))``."""
    family = Perturbation(
        init=lambda images: {"level": jnp.zeros(len(images)), "shift": jnp.zeros((len(images), 2))},
        apply=lambda params, images: (
            affine(parameters=("dy", "dx")).apply(params["shift"], images) + params["level"][:, None, None, None]
        ),
    )
    scale = 0.3

    def noise(key, params):
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        draws = [scale * jax.random.laplace(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, draws)

    law = SmoothingLaw(noise, lambda probability: -scale * math.log(2 * (1 - probability)), "l1 norm")
    logits_fn, image = plane(gap=0.8)
    found = certify(logits_fn, image, law=law, perturbation=family, num_samples=5000, key=KEY)
    assert 0.2 < found.radii[0] < 0.8  # level alone crosses at 0.8
    assert found.norm == "l1 norm"


# What cannot be used.


def certify_with(logits_fn=None, images=None, **options):
    logits_fn = perceptron(12) if logits_fn is None else logits_fn
    images = sample_images(1) if images is None else images
    return certify(logits_fn, images, **{"law": GAUSSIAN, "num_samples": 20, "key": KEY, **options})


def predict_with(**options):
    return smoothed_predictions(
        perceptron(12), sample_images(1), **{"law": GAUSSIAN, "num_samples": 20, "key": KEY, **options}
    )


PARAMS, WIDTHS = np.zeros((1, 2), np.float32), np.ones((9, 2))
NOT_BY_EXAMPLE = Perturbation(lambda images: jnp.zeros(2), lambda params, images: images)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: certify_with(images=sample_images(1).astype(int)), TypeError, ["images", "int"]),
        (lambda: certify_with(images=sample_images(1)[0, 0]), ValueError, ["images", "[n, h, w, c]", "(4, 1)"]),
        (lambda: certify_with(images=sample_images(0)), ValueError, ["images", "at least one", "(0, 3, 4, 1)"]),
        (lambda: certify_with(law=0.5), TypeError, ["law", "SmoothingLaw", "0.5"]),
        (lambda: certify_with(num_samples=2.5), TypeError, ["num_samples", "integer", "2.5"]),
        (lambda: certify_with(num_samples=0), ValueError, ["num_samples", "at least 1", "0"]),
        (lambda: certify_with(num_samples=9), ValueError, ["num_samples", "at least 10", "alpha=0.001", "9"]),
        (lambda: certify_with(num_selection=0), ValueError, ["num_selection", "at least 1"]),
        (lambda: certify_with(batch_size=0), ValueError, ["batch_size", "at least 1"]),
        (lambda: certify_with(alpha=1.0), ValueError, ["alpha", "(0, 1)", "1.0"]),
        (lambda: certify_with(alpha=math.nan), ValueError, ["alpha", "nan"]),
        (lambda: certify_with(alpha=1e-251), ValueError, ["alpha", "at least 1e-250", "1e-251"]),
        (lambda: predict_with(alpha=1.0), ValueError, ["alpha", "(0, 1)", "1.0"]),
        (lambda: predict_with(alpha=1e-251), ValueError, ["alpha", "at least 1e-250", "1e-251"]),
        (lambda: predict_with(num_samples=2.5), TypeError, ["num_samples", "integer", "2.5"]),
        (lambda: predict_with(params=PARAMS), ValueError, ["params", "(1, 3, 4, 2)", "(1, 2)"]),
        (
            lambda: certify_with(lambda images: images[:, 0, 0, 0]),
            ValueError,
            ["logits_fn", "(120, classes)", "(120,)"],
        ),
        (
            lambda: certify_with(lambda images: images[:1, 0, :, 0]),
            ValueError,
            ["logits_fn", "(120, classes)", "(1, 4)"],
        ),
        (lambda: certify_with(law=gaussian((1, 1, 1))), ValueError, ["sigma", "(3, 4, 2)", "(3,)"]),
        (lambda: uniform(WIDTHS).noise(KEY, PARAMS), ValueError, ["half_width", "(2,)", "(9, 2)"]),
        (lambda: gaussian(0), ValueError, ["sigma", "above 0", "0"]),
        (lambda: gaussian((1.0, -2.0)), ValueError, ["sigma", "above 0", "-2.0"]),
        (lambda: gaussian(math.inf), ValueError, ["sigma", "finite", "inf"]),
        (lambda: uniform(math.nan), ValueError, ["half_width", "finite", "nan"]),
        (lambda: uniform(None), TypeError, ["half_width", "number", "None"]),
        (lambda: uniform("wide"), TypeError, ["half_width", "number", "wide"]),
        (
            lambda: certify_with(perturbation=NOT_BY_EXAMPLE),
            ValueError,
            ["perturbation.init", "first axis", "(2,)"],
        ),
        (
            lambda: smoothed_votes(perceptron(12), sample_images(1), law=GAUSSIAN, params=PARAMS, key=KEY),
            ValueError,
            ["params", "(1, 3, 4, 2)", "(1, 2)"],
        ),
        (lambda: certified_accuracy(FOUND, np.array([0.5]), [0.0]), TypeError, ["labels", "float"]),
        (lambda: certified_accuracy(FOUND, np.array([0, 1]), [0.0]), ValueError, ["labels", "(1,)", "(2,)"]),
        (lambda: certified_accuracy(FOUND, np.array([0]), []), ValueError, ["radii", "[]"]),
        (lambda: certified_accuracy(FOUND, np.array([0]), [1.0, 0.5]), ValueError, ["radii", "increase"]),
        (lambda: certified_accuracy(FOUND, np.array([0]), [-0.5]), ValueError, ["radii", "at least 0"]),
        (lambda: clopper_pearson_bound(5, 4), ValueError, ["successes", "trials = 4", "5"]),
        (lambda: clopper_pearson_bound(1, 4, alpha=0.0), ValueError, ["alpha", "(0, 1)", "0.0"]),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value


FOUND = Certificates(np.array([0]), np.array([0.9]), np.array([0.5]), "l2 norm", 2.0, 100, 1000, 0.001, 1100, 1.0)
