"""Criteria: laws over all of them, and each against a plain NumPy loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformreg import losses, warp
from deformreg.criteria import classification, from_margin, multilabel, regression, segmentation
from deformreg.criteria.shares import needed
from deformreg.evaluation import suites
from deformreg.label_maps import warp_label_maps

pytestmark = pytest.mark.usefixtures("strict_promotion")


def far(outputs, labels):
    return jnp.max(jnp.abs(outputs - labels), axis=1) - 1.0


# A criterion, and its outputs and labels: shapes of one example, labels drawn by a function.
CASES = {
    "classification": (classification(), (3,), lambda draw, n: draw.integers(0, 3, n)),
    "segmentation": (segmentation(0.3), (4, 5, 3), lambda draw, n: draw.integers(-1, 3, (n, 4, 5))),
    "multilabel": (multilabel(0.75), (4,), lambda draw, n: draw.integers(0, 2, (n, 4))),
    "all labels": (multilabel(), (2,), lambda draw, n: draw.integers(0, 2, (n, 2)).astype(bool)),
    "regression": (regression(0.5), (), lambda draw, n: draw.normal(size=n).astype(np.float32)),
    "several numbers": (regression(1.5), (2, 2), lambda draw, n: draw.normal(size=(n, 2, 2)).astype(np.float32)),
    "own": (from_margin(far), (2,), lambda draw, n: draw.normal(size=(n, 2)).astype(np.float32)),
}
cases = pytest.mark.parametrize("name", CASES)


def drawn(name, count=40, seed=0):
    criterion, shape, draw_labels = CASES[name]
    draw = np.random.default_rng(seed)
    outputs = draw.normal(size=(count, *shape)).astype(np.float32)
    return criterion, outputs, draw_labels(draw, count)


@functools.cache
def compiled(name):
    criterion = CASES[name][0]
    return jax.jit(
        lambda outputs, labels: [f(outputs, labels) for f in (criterion.broken, criterion.margin, criterion.loss)]
    )


@cases
def test_the_margin_is_positive_where_the_output_is_broken(name):
    _, outputs, labels = drawn(name)
    broken, margins, _ = compiled(name)(outputs, labels)
    assert 0 < broken.mean() < 1
    np.testing.assert_array_equal(margins > 0, broken)


@cases
def test_an_example_depends_on_itself_alone(name):
    _, outputs, labels = drawn(name)
    together = compiled(name)(outputs, labels)
    for i in (0, 7):
        for one, all_of_them in zip(compiled(name)(outputs[i : i + 1], labels[i : i + 1]), together, strict=True):
            assert all_of_them.shape == (len(outputs),)
            np.testing.assert_allclose(one[0], all_of_them[i], rtol=1e-6)


@cases
def test_outputs_that_are_not_finite_are_broken(name):
    _, outputs, labels = drawn(name)
    labels = np.maximum(labels, 0)
    outputs[:3] = np.array([np.nan, np.inf, -np.inf]).reshape(3, *[1] * (outputs.ndim - 1))
    assert compiled(name)(outputs, labels)[0][:3].all()


def test_a_logit_of_minus_infinity_is_a_class_that_is_never_answered():
    nan, inf = np.nan, np.inf
    logits = jnp.array(
        [[2, -inf, 1], [-inf, 2, 1], [-inf, -inf, 0], [-inf] * 3, [2, nan, 1], [inf, 0, 1], [2, 3, -inf]]
    )
    labels = jnp.array([0, 1, 2, 0, 0, 0, 0])
    expected = [False, False, False, True, True, True, True]
    assert classification().broken(logits, labels).tolist() == expected
    maps, pixels = labels[:, None, None], logits[:, None, None]
    assert segmentation(1.0).broken(pixels, maps).tolist() == expected

    def second_best(logits, labels):
        others = jnp.where(jnp.arange(3)[None] == labels[:, None], -jnp.inf, logits)
        return jnp.sort(others, axis=1)[:, -2] - jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]

    right = logits.at[6].set(jnp.array([1, 2, -inf]))
    assert from_margin(second_best).broken(right, labels).tolist() == [*expected[:6], False]


def test_several_labels_may_be_a_sure_no():
    outputs = jnp.array([[-np.inf, 1.0], [-np.inf, 1.0], [-np.inf, -np.inf], [1.0, np.inf], [np.nan, 1.0]])
    labels = jnp.array([[0, 1], [1, 1], [0, 0], [1, 1], [0, 1]])
    assert multilabel().broken(outputs, labels).tolist() == [False, True, True, True, True]
    assert multilabel(0.5).broken(outputs, labels).tolist() == [False, False, True, False, False]
    for function in (multilabel().margin, multilabel().loss):
        assert np.isfinite(jax.grad(lambda x, f=function: f(x, labels[:1]).sum())(outputs[:1])).all()


@cases
def test_margins_and_losses_have_finite_gradients(name):
    criterion, outputs, labels = drawn(name)

    @jax.jit
    def gradients(outputs):
        return [jax.grad(lambda x, f=f: f(x, labels).sum())(outputs) for f in (criterion.margin, criterion.loss)]

    for gradient in gradients(outputs):
        assert np.isfinite(gradient).all()
        assert (gradient != 0).any()


@cases
def test_checks_accept_what_the_criterion_asks_for(name):
    criterion, outputs, labels = drawn(name, 4)
    shape = (4, 4, 5, 1)
    np.testing.assert_array_equal(criterion.check_outputs(outputs, 4, "logits_fn"), outputs)
    for known in (None, outputs.shape):
        np.testing.assert_array_equal(criterion.check_labels(labels, shape, known), labels)
    traced = jax.eval_shape(lambda given: jnp.asarray(criterion.check_labels(given, shape, outputs.shape)), labels)
    assert traced.shape == labels.shape


def test_segmentation_is_a_share_of_pixels():
    _, outputs, labels = drawn("segmentation")
    broken, _, losses_found = compiled("segmentation")(outputs, labels)
    for logits, label_map, is_broken, loss in zip(outputs, labels, broken, losses_found, strict=True):
        counted = label_map >= 0
        right = logits.argmax(-1)[counted] == label_map[counted]
        assert bool(is_broken) == (right.mean() < 0.3)
        shifted = logits.astype(np.float64)[counted]
        entropies = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(shifted)), label_map[counted]]
        np.testing.assert_allclose(loss, entropies.mean(), rtol=1e-5)


@pytest.mark.parametrize("least", [0.1, 0.3, 0.7, 0.9, 1.0])
def test_a_share_that_is_met_exactly_is_right(least):
    number = round(10 * least)
    for right, broken in ((number, False), (number - 1, True)):
        labels = jnp.where(jnp.arange(10) < right, 1, 0)
        logits = jnp.zeros((1, 10)) + 1.0  # positive: yes
        assert bool(multilabel(least).broken(logits, labels[None])[0]) is broken
        pixels = jnp.stack([jnp.zeros((1, 2, 5)), jnp.ones((1, 2, 5))], axis=-1)
        assert bool(segmentation(least).broken(pixels, labels.reshape(1, 2, 5))[0]) is broken


@pytest.mark.parametrize(
    ("least", "counted", "right"),
    [(1.0, 2_000_001, 2_000_001), (0.5, 4_000_001, 2_000_001), (0.7, 10, 7), (0.9, 1_000_000, 900_000)],
)
def test_a_share_of_millions_of_pixels_is_not_rounded_down(least, counted, right):
    assert int(needed(least, counted)) == int(needed(least, jnp.int32(counted))) == right


def test_the_smallest_share_asks_for_one_pixel():
    outputs = jnp.zeros((1, 1, 3, 2)).at[..., 1].set(1.0)
    assert segmentation(1e-9).broken(outputs, jnp.zeros((1, 1, 3), int)).all()
    assert not segmentation(1e-9).broken(outputs, jnp.array([[[0, 1, 0]]])).any()


def test_an_image_without_pixels_that_count_is_right():
    _, outputs, labels = drawn("segmentation", 1)
    labels = np.full_like(labels, -1)
    broken, margin, loss = compiled("segmentation")(outputs, labels)
    assert not broken[0]
    assert margin[0] < 0
    assert loss[0] == 0


def test_multilabel_is_a_share_of_labels():
    _, outputs, labels = drawn("multilabel")
    broken, _, found = compiled("multilabel")(outputs, labels)
    right = ((outputs > 0) == (labels == 1)).mean(axis=1)
    np.testing.assert_array_equal(broken, right < 0.75)
    probability = 1 / (1 + np.exp(-outputs.astype(np.float64)))
    entropies = -np.where(labels == 1, np.log(probability), np.log(1 - probability))
    np.testing.assert_allclose(found, entropies.mean(axis=1), rtol=1e-5)


def test_regression_bounds_an_error_of_choice():
    _, outputs, labels = drawn("several numbers")
    broken, _, found = compiled("several numbers")(outputs, labels)
    differences = (outputs - labels).astype(np.float64).reshape(40, 4)
    np.testing.assert_array_equal(broken, np.abs(differences).max(axis=1) > 1.5)
    np.testing.assert_allclose(found, (differences**2).sum(axis=1) / 2, rtol=1e-5)
    relative = regression(0.5, error=lambda outputs, labels: jnp.abs(outputs / labels - 1))
    assert relative.broken(jnp.array([1.4, 1.6]), jnp.ones(2)).tolist() == [False, True]


def test_classification_is_what_the_losses_say():
    criterion, outputs, labels = drawn("classification")
    np.testing.assert_array_equal(compiled("classification")(outputs, labels)[0], outputs.argmax(axis=1) != labels)
    np.testing.assert_array_equal(criterion.loss(outputs, labels), losses.cross_entropy(outputs, labels))
    np.testing.assert_array_equal(criterion.margin(outputs, labels), losses.margin(outputs, labels))


def test_equal_criteria_compile_once():
    traces = []

    @jax.jit
    def broken(criterion, outputs, labels):
        traces.append(criterion.name)
        return criterion.broken(outputs, labels)

    for _ in range(2):
        for criterion in (regression(1.0), regression(1), regression(np.float32(1.0))):
            broken(criterion, jnp.zeros(2), jnp.ones(2))
    assert len(traces) == 1
    assert segmentation(0.5, warp_labels=True) == segmentation(0.5, warp_labels=True) != segmentation(0.5)
    assert multilabel(0.5) == multilabel(0.5) != multilabel(0.6)


REFUSED = {
    "share above 1": (lambda: segmentation(1.5), ValueError, r"least must be a share in \(0, 1\], got 1.5"),
    "share of 0": (lambda: multilabel(0), ValueError, "least must be above 0, got 0"),
    "negative bound": (lambda: regression(-1), ValueError, "bound must be at least 0, got -1"),
    "error": (lambda: regression(1, error="mean"), TypeError, "error must be a function, got 'mean'"),
    "no function": (lambda: from_margin(0.5), TypeError, "margin must be a function, got 0.5"),
    "one-hot maps": (
        lambda: segmentation(0.5).check_labels(np.zeros((2, 4, 5, 3), int), (2, 4, 5, 1), (2, 4, 5, 3)),
        ValueError, r"labels must have shape \(2, 4, 5\), one class per pixel: give labels.argmax\(axis=-1\)",
    ),
    "another size": (
        lambda: segmentation(0.5).check_labels(np.zeros((2, 8, 8), int), (2, 8, 8, 1), (2, 4, 4, 3)),
        ValueError, r"labels must have shape \(2, 4, 4\), one class per pixel of the outputs, got \(2, 8, 8\)",
    ),
    "void of 255": (
        lambda: segmentation(0.5).check_labels(np.full((2, 4, 5), 255), (2, 4, 5, 1), (2, 4, 5, 3)),
        ValueError, "labels must be below 3, the number of classes, got 255: give pixels that do not count a negative",
    ),
    "void of 255 outside": (
        lambda: segmentation(0.5, warp_labels=True, outside=255).check_labels(
            np.zeros((2, 4, 5), int), (2, 4, 5, 1), (2, 4, 5, 3)
        ),
        ValueError, "outside must be below 3, the number of classes, got 255: give a negative label",
    ),
    "outside of what does not move": (
        lambda: segmentation(0.5, outside=-1), ValueError, "outside=-1 has no effect without warp_labels=True",
    ),
    "maps of probabilities": (
        lambda: warp_label_maps(np.zeros((1, 2, 2)), np.zeros((1, 2, 2, 2), np.float32)),
        TypeError, "label_maps must be integers, one class per pixel, got float",
    ),
    "floating maps": (
        lambda: segmentation(0.5).check_labels(np.zeros((2, 4, 5)), (2, 4, 5, 1), None),
        TypeError, "labels must be integers, one class per pixel, got float64",
    ),
    "smaller outputs": (
        lambda: segmentation(0.5, warp_labels=True).check_labels(np.zeros((2, 2, 2), int), (2, 4, 4, 1), (2, 2, 2, 3)),
        ValueError, r"warp_labels needs an output for every pixel of \(2, 4, 4\), got outputs of \(2, 2, 2\)",
    ),
    "a column": (
        lambda: regression(1).check_labels(np.zeros(3), (3, 4, 4, 1), (3, 1)),
        ValueError, r"labels must have the outputs' shape \(3, 1\), got \(3,\): reshape one of them",
    ),
    "missing labels": (
        lambda: regression(1).check_labels(np.array([0.0, np.nan]), (2, 4, 4, 1), (2,)),
        ValueError, "labels must be finite, got NaN or infinity",
    ),
    "class indices": (
        lambda: multilabel().check_labels(np.array([[0, 2]]), (1, 4, 4, 1), (1, 2)),
        ValueError, "labels must be 0 or 1 for each label, got others: for class indices use one-hot rows",
    ),
    "too few labels": (
        lambda: from_margin(far).check_labels(np.zeros(3), (4, 4, 4, 1), None),
        ValueError, r"labels must have one entry for each of 4 images, got shape \(3,\)",
    ),
    "classes of a segmentation": (
        lambda: segmentation(0.5).check_outputs(np.zeros((2, 3), np.float32), 2, "logits_fn"),
        ValueError, r"logits_fn must return floating-point outputs \[n, h, w, classes\] with n = 2, got shape \(2, 3\)",
    ),
    "predictions": (
        lambda: multilabel().check_outputs(np.zeros((2, 3), int), 2, "logits_fn"),
        TypeError, "got int64: return the values before any argmax or threshold",
    ),
    "a dictionary": (
        lambda: regression(1).check_outputs({"depth": 1.0}, 2, "logits_fn"),
        TypeError, "got a dict of 1: return the one array that the criterion reads",
    ),
    "reduced margin": (
        lambda: from_margin(lambda outputs, labels: outputs.mean()).margin(jnp.zeros((2, 3)), jnp.zeros(2)),
        ValueError, r"margin must return one loss per example, shape \(2,\), got shape \(\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistakes_are_named(mistake):
    call, error, message = REFUSED[mistake]
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_suites_leave_out_what_needs_one_class_per_image():
    right = segmentation(0.9)
    assert set(suites.standard.names) - set(suites.standard.suited_to(right).names) == {"apgd-targeted"}
    assert set(suites.full.names) - set(suites.full.suited_to(right).names) == {"apgd-dlr", "apgd-targeted", "adef"}
    for suite in suites.SUITES.values():
        assert suite.suited_to(classification()).names == suite.names


def test_label_maps_move_with_the_images():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 5, (3, 6, 7))
    np.testing.assert_array_equal(warp_label_maps(labels, jnp.zeros((3, 6, 7, 2))), labels)
    flow = draw.normal(scale=3.0, size=(3, 6, 7, 2)).astype(np.float32)
    moved, marked = (np.asarray(warp_label_maps(labels, flow, outside=outside)) for outside in (None, -1))
    for n, y, x in np.ndindex(3, 6, 7):
        row, column = np.floor([y, x] + flow[n, y, x].astype(np.float64) + 0.5).astype(int)
        assert moved[n, y, x] == labels[n, np.clip(row, 0, 5), np.clip(column, 0, 6)]
        assert marked[n, y, x] == (moved[n, y, x] if 0 <= row < 6 and 0 <= column < 7 else -1)
    far_away = warp_label_maps(labels, jnp.full((3, 6, 7, 2), 1e30), outside=9)
    np.testing.assert_array_equal(far_away, 9)
    with pytest.raises(ValueError, match=r"flow must have shape \(3, 6, 7, 2\) for label maps of \(3, 6, 7\)"):
        warp_label_maps(labels, jnp.zeros((3, 6, 6, 2)))
    with pytest.raises(ValueError, match="outside must be a label of type uint8, got -1"):
        warp_label_maps(labels.astype(np.uint8), flow, outside=-1)


def test_label_maps_of_bytes_may_have_pixels_that_do_not_count():
    criterion = segmentation(0.9, warp_labels=True, outside=-1)
    labels = np.zeros((1, 3, 3), np.uint8)
    checked = criterion.check_labels(labels, (1, 3, 3, 1), (1, 3, 3, 2))
    assert np.asarray(criterion.warp_labels(checked, jnp.full((1, 3, 3, 2), 2.0))).min() == -1


@cases
def test_known_labels_are_checked_inside_a_trace_of_something_else(name):
    criterion, outputs, labels = drawn(name, 4)
    labels = jnp.asarray(labels)

    def loss(images):
        return criterion.check_labels(labels, images.shape, outputs.shape).sum() + images.sum()

    assert jax.eval_shape(jax.grad(loss), jnp.zeros((4, 4, 5, 1))).shape == (4, 4, 5, 1)


@pytest.mark.parametrize("space", [(9,), pytest.param((3, 4, 5), marks=pytest.mark.slow)])
def test_whole_pixels_move_as_in_images_of_any_rank(space):
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 5, (2, *space))
    flow = draw.integers(-3, 4, (2, *space, len(space))).astype(np.float32)
    for boundary, outside in (("edge", None), ("zeros", 0)):
        images = warp(labels[..., None].astype(np.float32), flow, boundary=boundary)
        np.testing.assert_array_equal(warp_label_maps(labels, flow, outside=outside), images[..., 0])
