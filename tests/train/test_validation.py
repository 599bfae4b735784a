"""The accuracy after an epoch, by which checkpoints are chosen."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from settings import TINY, OneLayer

from train import loop, overfitting, parallel
from train.data import Augmentation, load, to_float
from train.state import predict
from train.task import build
from train.validation import divided, validate


@pytest.mark.parametrize(
    "devices", [pytest.param(1, marks=pytest.mark.slow), 8]
)  # of 297 images; on eight devices seven rows are padding
def test_the_accuracy_is_that_of_a_count_also_of_averaged_weights(devices):
    source = load("digits", split="test")
    network, (images, labels) = build(TINY, source), source.read(np.arange(len(source)))
    engine = parallel.make_engine("jit", devices=devices, batch_size=16)
    state = network.init()
    average = jax.tree.map(lambda leaf: -leaf, (state.params, state.batch_stats))
    found = []
    for each in (state, state._replace(average=average)):
        right = np.argmax(predict(network.model, *each.evaluated, to_float(images)), axis=1) == labels
        assert 0 < right.mean() < 0.5
        found.append(validate(network.model, each, source, engine, Augmentation()))
        assert found[-1] == pytest.approx(right.mean())
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("devices", "at_once", "size"), [(1, 500, 297), (1, 128, 128), (1, 7, 7), (8, 500, 304), (8, 64, 64), (8, 12, 16)]
)
def test_no_batch_has_more_images_than_a_training_step(devices, at_once, size):
    source = load("digits", split="test")
    engine = parallel.make_engine("jit", devices=devices, batch_size=16)
    batches = list(divided(source, engine, at_once))
    assert {len(batch["label"]) for batch in batches} == {size}
    labels = np.concatenate([np.asarray(batch["label"])[np.asarray(batch["valid"])] for batch in batches])
    np.testing.assert_array_equal(labels, source.read(np.arange(297))[1])


def test_the_accuracy_does_not_depend_on_the_batches():
    source = load("digits", split="test")
    network, engine = build(TINY, source), parallel.make_engine("jit", devices=8, batch_size=16)
    state = network.init()
    found = [validate(network.model, state, source, engine, Augmentation(), at_once=size) for size in (64, 500)]
    assert found[0] == found[1]


def test_a_training_validates_and_attacks_as_many_images_at_once_as_a_step(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(loop, "validate", lambda *_, at_once: found.append(at_once) or 0.5)
    monkeypatch.setattr(overfitting, "detector", lambda *_, at_once, **__: found.append(at_once) or (lambda state: {}))
    config = replace(TINY, batch_size=500, accumulate=4, devices=1)
    loop.fit(config, tmp_path / "run", model=OneLayer)
    assert found == [125, 125]
