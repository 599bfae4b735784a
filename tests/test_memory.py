"""Training in less memory: accumulation, rematerialization and bfloat16 do not change what is optimized."""

from __future__ import annotations

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train import parallel
from train.config import Config, ConfigError, Method, check
from train.data import Augmentation
from train.models import create_model
from train.steps import init_state, make_step

METHODS = {
    "standard": Method(),
    "input-gradient": Method(name="input-gradient", weight=0.1),
    "flow-gradient": Method(name="flow-gradient", weight=1.0),
    "random start": Method(name="flow-gradient", weight=1.0, random_start=0.1),
    "finite difference": Method(name="flow-gradient", weight=1.0, penalty="finite-difference"),
    "running statistics": Method(name="flow-gradient", weight=1.0, statistics="running"),
    "every third": Method(name="flow-gradient", weight=1.0, every=3),
    "adversarial": Method(name="adversarial", radius=0.03, steps=2),
    "deformation": Method(name="deformation", radius=0.2, steps=2),
    "both": Method(name="flow-gradient+deformation", weight=1.0, radius=0.2, steps=2),
}
DESCENT = optax.sgd(1.0)  # one step moves the parameters by minus the gradient


class Plain(nn.Module):
    """A network that compiles in no time; smooth, so that nothing but rounding tells two ways of summing apart."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(4)(jnp.tanh(nn.Dense(16)(images.reshape(len(images), -1))))


def batch_of(size, side=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, side, side, 1), dtype=np.uint8),
        "label": rng.integers(0, 4, size).astype(np.int32),
        "position": np.arange(size, dtype=np.int32),
    }


def stepped(config, model, batch, kind=None, devices=1):
    """Metrics, and parameters and statistics after one step of plain descent."""
    state, step = init_state(model, DESCENT, batch["image"].shape[1:], 0), make_step(config, model, DESCENT)
    if kind is None:
        after, metrics = jax.jit(step)(state, batch)
    else:
        engine = parallel.make_engine(kind, devices=devices, batch_size=len(batch["label"]))
        after, metrics = engine.compile(step)(engine.put_state(state), engine.put_batch(batch))
    tree = {"metrics": metrics, "params": after.params, "batch_stats": after.batch_stats}
    return jax.tree.map(np.asarray, tree)


def assert_close(tree, expected, atol):
    for (path, value), reference in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(value, reference, rtol=1e-5, atol=atol, err_msg=jax.tree_util.keystr(path))


# Accumulation.


def test_one_batch_of_128_is_four_of_32():
    # Group normalization: an example does not know its batch.
    config = Config(method=METHODS["random start"], augmentation=Augmentation(shift=1, flip=True))
    model, batch = create_model("small-cnn", num_classes=4, width=0.25, norm="group"), batch_of(128)
    whole = stepped(config, model, batch)
    assert whole["metrics"]["penalty"] > 1e-4
    assert_close(stepped(replace(config, accumulate=4), model, batch), whole, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_accumulates(name):
    config, batch = Config(method=METHODS[name], augmentation=Augmentation(shift=1)), batch_of(24)
    whole = stepped(config, Plain(), batch)
    assert_close(stepped(replace(config, accumulate=3), Plain(), batch), whole, atol=1e-5)


@pytest.mark.parametrize("kind", ["pmap", "jit"])
def test_devices_accumulate_the_same_parts(kind):
    config, batch = Config(method=METHODS["every third"], accumulate=2), batch_of(24)
    assert_close(stepped(config, Plain(), batch, kind, devices=4), stepped(config, Plain(), batch), atol=1e-5)


def test_batch_statistics_are_the_mean_over_micro_batches():
    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            return nn.Dense(4)(nn.BatchNorm(not train, momentum=0.9)(images.reshape(len(images), -1)))

    batch = batch_of(24)
    found = stepped(Config(accumulate=3), Normalized(), batch)["batch_stats"]["BatchNorm_0"]
    parts = (batch["image"].reshape(8, 3, -1) / 255.0).astype(np.float32)
    np.testing.assert_allclose(found["mean"], 0.1 * parts.mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * parts.var(0).mean(0), atol=1e-6)


def test_micro_batches_must_divide_the_batch():
    with pytest.raises(ConfigError, match="--accumulate must divide --batch-size 128, got 3"):
        check(Config(accumulate=3))
    with pytest.raises(ConfigError, match="--accumulate must be at least 1"):
        check(Config(accumulate=0))
