"""The accuracy after an epoch, by which checkpoints are chosen."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from settings import TINY

from train import parallel
from train.data import Augmentation, load, to_float
from train.state import predict
from train.task import build
from train.validation import validate


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
