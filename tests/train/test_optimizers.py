"""Optimizers: that they descend, clip, and decay what they should; moving averages of the weights."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from settings import TINY, batches, network

from train.config import Data, Model
from train.errors import ConfigError
from train.loop import fit
from train.optimizers import OPTIMIZERS, AdamW, Given, Muon, Sgd
from train.restored import open_run
from train.runs import Run, load_config
from train.state import averaged, init_state
from train.step import make_step

PARAMS = {
    "dense": {"bias": np.ones(3, np.float32), "kernel": np.full((4, 3), 2, np.float32)},
    "conv": {"kernel": np.ones((2, 2, 4, 3), np.float32)},
    "depthwise": {"kernel": np.ones((7, 7, 3), np.float32)},  # as in this program's ConvNeXt
    "depthwise_of_flax": {"kernel": np.ones((2, 2, 1, 3), np.float32)},
    "attention": {"kernel": np.ones((4, 2, 2), np.float32), "bias": np.ones((2, 2), np.float32)},
    "positions": np.ones((1, 4, 3), np.float32),
    "class_token": np.ones((1, 1, 3), np.float32),
}
kinds = pytest.mark.parametrize("kind", [kind for kind in OPTIMIZERS.values() if kind is not Given])
NO_GRADIENT = jax.tree.map(np.zeros_like, PARAMS)


def named(tree):
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in jax.tree.leaves_with_path(tree)
    ]


def moved(kind, gradients, rate=0.1):
    """The parameters after one step."""
    optimizer = kind.make(optax.constant_schedule(rate))
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(PARAMS), PARAMS)
    return optax.apply_updates(PARAMS, updates)


@kinds
def test_weight_decay_can_leave_out_all_but_kernels(kind):
    every, kernels = (moved(kind(weight_decay=0.5, decay_all=decay_all), NO_GRADIENT) for decay_all in (True, False))
    for name, leaf in named(PARAMS):
        assert np.all(dict(named(every))[name] < leaf), name
        decayed = every if name.endswith("kernel") else PARAMS
        np.testing.assert_array_equal(dict(named(kernels))[name], dict(named(decayed))[name], name)


@kinds
def test_every_optimizer_descends(kind):
    after = moved(kind(weight_decay=0.0), PARAMS, rate=0.01)  # of half the squared norm
    assert jax.tree.all(jax.tree.map(lambda new, old: np.all(new < old), after, PARAMS))


def test_muon_orthogonalizes_dense_and_convolutional_kernels_only():
    """Adam's first step has one length in all entries, an orthogonalized one has not."""
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), PARAMS)
    after = moved(Muon(weight_decay=0.0), gradients)
    lengths = jax.tree.map(lambda new, old: np.ptp(np.abs(new - old)), after, PARAMS)
    assert {name for name, length in named(lengths) if length > 1e-3} == {"conv/kernel", "dense/kernel"}


def test_a_gradient_is_shortened_to_the_norm():
    plain = Sgd(momentum=0.0, weight_decay=0.0)
    length = float(optax.tree.norm(PARAMS))
    for limit, expected in ((0.5, 0.5), (2 * length, length), (0.0, length)):
        after = moved(replace(plain, clip_norm=limit), PARAMS, rate=1.0)
        step = optax.tree.norm(optax.tree.sub(after, PARAMS))
        np.testing.assert_allclose(step, expected, rtol=1e-5)


def test_the_average_is_that_of_the_last_weights_with_a_short_memory_at_first():
    mean = np.zeros(2)
    for step in range(3):
        ours, _ = averaged((jnp.asarray(mean, jnp.float32), ()), (jnp.full(2, step + 1.0), ()), jnp.array(step), 0.2)
        share = min(0.2, (1 + step) / (10 + step))
        mean = share * mean + (1 - share) * (step + 1.0)
        np.testing.assert_allclose(ours, mean, rtol=1e-6)
    assert share == 0.2


@pytest.mark.slow
def test_an_average_is_kept_beside_the_weights_and_skips_what_is_not_finite():
    config = replace(TINY, model=Model(width=0.25, norm="batch"), optimizer=AdamW())
    model, plain, _ = network(config)
    optimizer = config.optimizer.make(optax.constant_schedule(0.01))
    state = init_state(model, optimizer, (8, 8, 1), config.seed, average=True)
    make = jax.jit(
        make_step(
            config.method.make(), model, optimizer, rate=optax.constant_schedule(0.01),
            augmentation=config.augmentation, average=0.5,
        )
    )  # fmt: skip
    expected = state.params
    for number, batch in enumerate(batches(3)):
        state, _ = make(state, batch)
        share = min(0.5, (1 + number) / (10 + number))
        expected = jax.tree.map(lambda old, new, s=share: s * old + (1 - s) * new, expected, state.params)
    params, batch_stats = state.evaluated
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, expected)
    assert jax.tree.structure(batch_stats) == jax.tree.structure(state.batch_stats)
    assert plain.evaluated == (plain.params, plain.batch_stats)
    broken = state._replace(params=jax.tree.map(lambda leaf: leaf * np.nan, state.params))
    after, _ = make(broken, batch)
    jax.tree.map(np.testing.assert_array_equal, after.average, state.average)


@pytest.mark.slow
def test_any_optax_transformation_trains_from_python(tmp_path):
    """With the config's learning rate and schedule; the run records that it came from a script."""
    config = replace(TINY, data=Data(name="digits"), batch_size=256)
    state = fit(config, tmp_path / "run", optimizer=optax.lion)
    assert int(state.step) > 0
    assert load_config(Run(tmp_path / "run").folder).optimizer == Given("lion", config.optimizer.learning_rate)
    with pytest.raises(ConfigError, match=r"optimizer 'lion' of this run comes from a script: .* optimizer="):
        open_run(tmp_path / "run")
    assert open_run(tmp_path / "run", optimizer=optax.lion).step == int(state.step)
    again = fit(replace(config, epochs=2), tmp_path / "run", optimizer=optax.lion, resume=True)
    assert int(again.step) == 2 * int(state.step)
