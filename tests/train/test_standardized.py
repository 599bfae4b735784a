"""A network with the mean and standard deviation of its images inside."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from settings import TINY, batches

from train.config import Data, Model
from train.data import load
from train.errors import ConfigError
from train.methods import Forward
from train.methods.method import takes_keys
from train.models import create_model
from train.models.standardized import Standardized
from train.state import predict
from train.task import build, make_model


@pytest.mark.slow
def test_it_is_the_network_of_standardized_images_with_its_parameters():
    network = create_model("small-cnn", num_classes=4, width=0.25, norm="batch")
    model = Standardized(network, (0.25,), (0.5,))
    (batch,) = batches(1)
    images = batch["image"].astype(np.float32) / 255
    variables = jax.jit(network.init)(jax.random.key(0), images)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(
        np.shape, jax.eval_shape(model.init, jax.random.key(0), images)
    )
    parts = variables["params"], variables["batch_stats"]
    found, expected = predict(model, *parts, images), predict(network, *parts, (images - 0.25) / 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert takes_keys(model)
    keys = jax.random.split(jax.random.key(1), len(images))
    forwards = (Forward(each, *parts, batch["label"], keys) for each in (model, network))
    (ours, aux), (theirs, _) = (
        forward.train(inputs) for forward, inputs in zip(forwards, (images, (images - 0.25) / 0.5), strict=True)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(aux.batch_stats) == jax.tree.structure(variables["batch_stats"])


def test_a_config_has_it_and_a_wrong_number_of_channels_is_one_line():
    assert isinstance(make_model(replace(TINY, model=Model(std=(0.5,))), 4), Standardized)
    assert not isinstance(make_model(TINY, 4), Standardized)
    config = replace(TINY, data=Data(name="digits"), model=Model(mean=(0.1, 0.2, 0.3)))
    with pytest.raises(ConfigError, match="mean must be 1 numbers, one per channel, got 3"):
        build(config, load("digits", split="test"))
