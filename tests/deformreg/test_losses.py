"""The unreduced losses against float64 NumPy, their invariances and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformreg.losses import cross_entropy, difference_of_logits_ratio, margin

pytestmark = pytest.mark.usefixtures("strict_promotion")

LOSSES = (cross_entropy, margin, difference_of_logits_ratio)
LABELS = np.array([0, 1, 2, 3, 4, 0, 1, 2])


def random_logits(seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(scale=3, size=(8, 5)).astype(dtype)


def by_hand(loss, logits, label):
    logits = logits.astype(np.float64)
    if loss is cross_entropy:
        return np.log(np.exp(logits).sum()) - logits[label]
    gap = np.delete(logits, label).max() - logits[label]
    if loss is margin:
        return gap
    first, _, third, *_ = sorted(logits, reverse=True)
    return gap / (first - third)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_match_numpy(loss):
    logits = random_logits()
    expected = [by_hand(loss, *pair) for pair in zip(logits, LABELS, strict=True)]
    np.testing.assert_allclose(loss(logits, LABELS), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_sixteen_bit_logits_are_summed_in_float32(loss):
    logits = random_logits().astype(jnp.bfloat16)
    values = loss(logits, LABELS)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, loss(logits.astype(np.float32), LABELS))


@pytest.mark.parametrize("loss", [margin, difference_of_logits_ratio])
def test_the_sign_says_whether_the_prediction_is_wrong(loss):
    logits = random_logits(seed=3)
    wrong = logits.argmax(axis=1) != LABELS
    assert 0 < wrong.sum() < len(wrong)
    np.testing.assert_array_equal(np.asarray(loss(logits, LABELS)) > 0, wrong)
    # On ties the margin is zero, whatever is predicted.
    assert loss(np.array([[1, 1, 0], [1, 1, 0]], np.float32), np.array([0, 1])).tolist() == [0, 0]


def test_the_cross_entropy_of_soft_labels_is_the_mean_over_the_classes():
    logits, shares = random_logits(), np.random.default_rng(1).dirichlet(np.ones(5), 8).astype(np.float32)
    by_class = np.stack([cross_entropy(logits, np.full(8, label)) for label in range(5)], axis=1)
    np.testing.assert_allclose(cross_entropy(logits, shares), (shares * by_class).sum(1), rtol=1e-5)
    hot = np.eye(5, dtype=np.float32)[LABELS]
    np.testing.assert_array_equal(cross_entropy(logits, hot), cross_entropy(logits, LABELS))
    gradient = jax.grad(lambda logits: cross_entropy(logits, shares).sum())(logits)
    np.testing.assert_allclose(gradient, jax.nn.softmax(logits) - shares, atol=1e-5)
    impossible = cross_entropy(np.array([[0.0, -np.inf]], np.float32), np.array([[1.0, 0.0]], np.float32))
    assert impossible.tolist() == [0.0]


def test_soft_labels_may_be_lists():
    logits, shares = jnp.array([[1.0, 2.0, 3.0], [0.0, -1.0, 2.0]]), [[0.5, 0.5, 0], [0, 1.0, 0]]
    np.testing.assert_array_equal(cross_entropy(logits, shares), cross_entropy(logits, jnp.array(shares)))
    np.testing.assert_array_equal(cross_entropy(logits, [2, 0]), cross_entropy(logits, jnp.array([2, 0])))


def test_soft_labels_that_are_rounded_keep_the_laws_of_the_cross_entropy():
    """Smoothed labels of 16 bits do not sum to 1; the loss still ignores a shift of all logits."""
    shares = jax.nn.one_hot(jnp.array([3]), 10, dtype=jnp.bfloat16) * 0.95 + jnp.bfloat16(0.005)
    assert float(shares.astype(jnp.float32).sum()) != 1
    logits = jax.random.normal(jax.random.key(0), (1, 10))
    gradient = jax.grad(lambda z: cross_entropy(z, shares).sum())(logits)
    np.testing.assert_allclose(gradient.sum(), 0, atol=1e-6)
    np.testing.assert_allclose(cross_entropy(logits + 1000, shares), cross_entropy(logits, shares), rtol=1e-3)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.full((8, 5), 0.3, np.float32), ["labels", "sum to 1", "1.5", "index 0"]),
        (np.eye(5, dtype=np.float32)[LABELS] * 1.5 - 0.1, ["labels", "at least 0", "-0.1"]),
        (np.full((8, 4), 0.25, np.float32), ["labels", "(8, 5)", "(8, 4)"]),
    ],
)
def test_soft_labels_that_are_no_probabilities_are_named(labels, words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        cross_entropy(random_logits(), labels)
    assert all(word in str(caught.value) for word in words)


def test_the_ratio_ignores_shift_and_scale_of_the_logits():
    logits = random_logits()
    expected = difference_of_logits_ratio(logits, LABELS)
    np.testing.assert_allclose(difference_of_logits_ratio(logits * 128 + 64, LABELS), expected, rtol=1e-4)
    assert not np.allclose(margin(logits * 128, LABELS), margin(logits, LABELS))


def test_shifts_do_not_change_cross_entropy_and_margin():
    logits = random_logits()
    for loss in (cross_entropy, margin):
        np.testing.assert_allclose(loss(logits + 64, LABELS), loss(logits, LABELS), atol=5e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("logits", [random_logits() * 1e4, np.zeros((8, 5), np.float32)], ids=["huge", "equal"])
def test_huge_and_equal_logits_stay_finite_with_their_gradients(loss, logits):
    values, gradients = jax.vjp(lambda logits: loss(logits, LABELS), logits)
    assert np.isfinite(values).all()
    assert np.isfinite(gradients(jnp.ones(8))[0]).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_match_finite_differences(loss, float64):
    logits = random_logits(dtype=np.float64)
    gradient = np.asarray(jax.grad(lambda logits: loss(logits, LABELS).sum())(logits))
    for index in np.ndindex(logits.shape):
        bump = np.zeros_like(logits)
        bump[index] = 1e-6
        slope = (
            by_hand(loss, (logits + bump)[index[0]], LABELS[index[0]])
            - by_hand(loss, (logits - bump)[index[0]], LABELS[index[0]])
        ) / 2e-6
        np.testing.assert_allclose(gradient[index], slope, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_an_empty_batch_has_no_losses(loss):
    assert loss(np.zeros((0, 5), np.float32), np.zeros(0, int)).shape == (0,)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("logits", "labels", "error", "words"),
    [
        (random_logits(), LABELS.astype(np.float32), TypeError, ["labels", "integers", "float32"]),
        (random_logits().astype(int), LABELS, TypeError, ["logits", "floating", "int"]),
        (random_logits()[0], LABELS[:1], ValueError, ["logits", "[n, classes]", "(5,)"]),
        (random_logits(), LABELS[:3], ValueError, ["labels", "(8,)", "(3,)"]),
        (random_logits(), np.eye(8, dtype=int), ValueError, ["labels", "(8,)", "(8, 8)"]),
    ],
)
def test_what_does_not_fit_is_named(loss, logits, labels, error, words):
    with pytest.raises(error) as caught:
        loss(logits, labels)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(("loss", "classes"), [(margin, 2), (difference_of_logits_ratio, 3)])
def test_too_few_classes_are_counted(loss, classes):
    with pytest.raises(ValueError, match=rf"logits must have at least {classes} classes here, got {classes - 1}"):
        loss(np.zeros((8, classes - 1), np.float32), LABELS)
