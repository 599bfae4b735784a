"""Soft labels: smoothing, mixtures of images, weights of classes; the same step however a batch is divided."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from settings import TINY, batches, network

from deformreg import cross_entropy
from train import parallel
from train.config import Data, Model
from train.data import Augmentation, Labels
from train.data.labels import mix, neighbours, smooth
from train.errors import ConfigError
from train.loop import fit
from train.methods import Forward
from train.methods.adversarial import Deformation
from train.methods.mart import Mart
from train.methods.spatial import Spatial
from train.step import make_step

KEYS = jax.random.split(jax.random.key(0), 64)
BLACK, WHITE = jnp.zeros((64, 6, 8, 1)), jnp.ones((64, 6, 8, 1))
FIRST, SECOND = smooth(jnp.zeros(64, int), 3, 0.0), smooth(jnp.ones(64, int), 3, 0.0)


def mixed(**options):
    images, labels = jax.jit(lambda: mix(KEYS, BLACK, FIRST, WHITE, SECOND, Labels(**options)))()
    return np.asarray(images), np.asarray(labels)


def test_a_smoothed_label_is_a_probability():
    np.testing.assert_allclose(smooth(jnp.array([1]), 4, 0.2), [[0.05, 0.85, 0.05, 0.05]], rtol=1e-6)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_a_labels_share_is_that_of_its_image(options):
    """A black image mixed with a white one is as bright as the second label is likely."""
    images, labels = mixed(**options)
    np.testing.assert_allclose(images.mean((1, 2, 3)), labels[:, 1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-5)
    assert np.all(labels[:, 2] == 0)
    assert labels[:, 1].std() > 0.2
    assert 0.3 < labels[:, 1].mean() < 0.6  # what leaves the image is cut off


@pytest.mark.slow
def test_mixup_is_the_same_everywhere_and_cutmix_a_rectangle():
    images, _ = mixed(mixup=0.8)
    assert np.all(images == images[:, :1, :1])
    images, _ = mixed(cutmix=1.0)
    assert set(np.unique(images)) == {0.0, 1.0}
    rows, columns = images.max(2, keepdims=True), images.max(1, keepdims=True)
    np.testing.assert_array_equal(images, rows * columns)
    images, _ = mixed(mixup=0.8, cutmix=1.0)
    is_even = np.all(images == images[:, :1, :1], axis=(1, 2, 3))
    assert 10 < is_even.sum() < 54


def test_neighbours_exchange_places():
    assert neighbours(jnp.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]
    assert neighbours(neighbours(BLACK)).shape == BLACK.shape


def step_of(labels, *, method=TINY.method, accumulate=1, axis=None):
    config = replace(TINY, model=Model(width=0.25, norm="group"), method=method)
    model, state, _ = network(config, axis)
    optimizer = config.optimizer.make(optax.constant_schedule(0.1))
    step = make_step(
        method.make(), model, optimizer, rate=optax.constant_schedule(0.1), augmentation=Augmentation(shift=1),
        labels=labels, num_classes=4, accumulate=accumulate,
    )  # fmt: skip
    return model, state._replace(opt_state=optimizer.init(state.params)), step


SOFT = Labels(smoothing=0.1, mixup=0.8, cutmix=1.0, weights=(1.0, 2.0, 0.5, 0.5))


@pytest.mark.slow
def test_a_step_on_soft_labels_does_not_depend_on_how_its_batch_is_divided():
    method = Deformation(radius=0.2, steps=1)
    (batch,) = batches(1)
    _, state, step = step_of(SOFT, method=method)
    expected, metrics = jax.jit(step)(state, batch)
    parts = jax.jit(step_of(SOFT, method=method, accumulate=4)[2])(state, batch)[0]
    found = {"accumulated": parts}
    for kind in ("pmap", "jit"):
        engine = parallel.make_engine(kind, devices=4, batch_size=16)
        axis = parallel.AXIS if kind == "pmap" else None
        divided = step_of(SOFT, method=method, axis=axis)[2]
        found[kind], _ = engine.compile(divided)(engine.put_state(state), engine.feed(batch))
    for kind, after in found.items():
        jax.tree.map(
            lambda a, b, kind=kind: np.testing.assert_allclose(a, b, atol=1e-5, err_msg=kind),
            jax.tree.map(np.asarray, after.params),
            expected.params,
        )
    assert np.isfinite(float(metrics["loss"]))


@pytest.mark.slow
def test_weights_multiply_the_losses_of_their_class():
    weights = (1.0, 2.0, 0.5, 0.0)
    _, state, plain = step_of(Labels())
    steps = [jax.jit(step) for step in (step_of(Labels(weights=weights))[2], plain)]
    (batch,) = batches(1)
    for label, weight in enumerate(weights):
        found, expected = (step(state, {**batch, "label": np.full(16, label, np.int32)})[1]["loss"] for step in steps)
        np.testing.assert_allclose(found, weight * expected, rtol=1e-6)


def test_the_class_of_a_soft_label_is_the_likeliest():
    soft = jnp.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]])
    assert Forward(None, {}, {}, soft, None).classes.tolist() == [1, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [Mart(radius=0.2, steps=1), Spatial(radius=1.0, degrees=5.0, draws=2)], ids=lambda method: method.name
)
def test_methods_that_need_a_class_train_on_soft_labels(method):
    (batch,) = batches(1)
    _, state, step = step_of(SOFT, method=method)
    _, metrics = jax.jit(step)(state, batch)
    assert all(np.isfinite(float(value)) for value in metrics.values())


def test_smoothing_is_that_of_the_loss():
    logits = jax.random.normal(jax.random.key(1), (5, 4))
    labels = jnp.array([0, 1, 2, 3, 0])
    by_class = jnp.stack([cross_entropy(logits, jnp.full(5, label)) for label in range(4)], axis=1)
    expected = 0.9 * cross_entropy(logits, labels) + 0.1 * by_class.mean(1)
    np.testing.assert_allclose(cross_entropy(logits, smooth(labels, 4, 0.1)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": Labels(weights=(1.0, 2.0))}, "--labels.weights must be 10 numbers, one per class, got 2"),
        (
            {"labels": Labels(mixup=0.5), "batch_size": 9, "devices": 1},
            "--batch-size must be an even number per device",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(changes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        fit(replace(TINY, data=Data(name="digits"), **changes), tmp_path / "run")
