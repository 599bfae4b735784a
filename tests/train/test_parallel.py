"""The two engines: what they hand over, and what they refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from settings import METHODS, batches

from train import parallel
from train.data import Augmentation
from train.errors import ConfigError
from train.models import create_model
from train.optimizers import Sgd
from train.state import init_state
from train.step import make_step


@pytest.mark.parametrize("kind", ["pmap", "jit"])
@pytest.mark.parametrize("devices", [1, 4])
def test_what_a_step_is_fed_equals_what_would_be_moved(kind, devices):
    def step(state, batch, *, axis=None):
        total = jnp.sum(batch["image"] * (1.0 + batch["position"])[:, None, None, None])
        return state, total if axis is None else jax.lax.psum(total, axis)

    engine = parallel.make_engine(kind, devices=devices, batch_size=16)
    (batch,) = batches(1)
    totals = [
        engine.compile(step)(engine.put_state(jnp.zeros(())), give(batch))[1]
        for give in (engine.feed, engine.put_batch)
    ]
    np.testing.assert_array_equal(*totals)
    np.testing.assert_allclose(totals[0], np.vdot(batch["image"].sum((1, 2, 3)), 1.0 + batch["position"]), rtol=1e-5)


def test_engine_refuses_what_does_not_divide():
    with pytest.raises(ConfigError, match="--batch-size must divide among 8 devices, got 12"):
        parallel.make_engine("pmap", batch_size=12)
    with pytest.raises(ConfigError, match="--devices must be at most 8"):
        parallel.make_engine("jit", devices=9, batch_size=18)


def test_pmap_has_no_sharded_state():
    with pytest.raises(ConfigError, match="--shard-state needs --parallel jit"):
        parallel.make_engine("pmap", batch_size=16, shard_state=True)


def test_arrays_are_sharded_along_their_longest_axis_that_divides():
    shapes = {
        (64, 128): (None, "data"),
        (128, 64): ("data",),
        (72, 72): ("data",),  # the first of equals
        (3, 3, 64, 60): (None, None, "data"),
        (7, 12345): (),  # none divides
        (4088,): (),  # too small
        (): (),
    }
    tree = {shape: jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes}
    mesh = Mesh(np.array(jax.devices()[:8]), (parallel.AXIS,))
    assert {shape: tuple(sharding.spec) for shape, sharding in parallel.shardings(tree, mesh).items()} == shapes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow-gradient", "standard"])
def test_a_sharded_state_takes_the_same_steps(name, monkeypatch):
    """Twenty steps with batch statistics, momentum, and averages, on eight devices."""
    monkeypatch.setattr(parallel, "SMALLEST_SHARDED", 64)
    rate = 0.02
    model = create_model("small-cnn", num_classes=4, width=0.5, norm="batch")
    optimizer = Sgd(learning_rate=rate).make(rate)
    step = make_step(
        METHODS[name].make(), model, optimizer, rate=lambda _: rate, augmentation=Augmentation(), average=0.9
    )
    start = init_state(model, optimizer, (8, 8, 1), 0, average=True)
    losses, states, sizes = {}, {}, {}
    for shard_state in (False, True):
        engine = parallel.make_engine("jit", devices=8, batch_size=16, shard_state=shard_state)
        state, compiled = engine.put_state(start), engine.compile(step)
        places, losses[shard_state] = [leaf.sharding for leaf in jax.tree.leaves(state)], []
        for batch in batches(20):
            state, metrics = compiled(state, engine.feed(batch))
            losses[shard_state].append(float(metrics["loss"]))
        leaves = jax.tree.leaves(state)
        for leaf, place in zip(leaves, places, strict=True):
            assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
        sizes[shard_state] = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
        states[shard_state] = jax.tree.map(np.asarray, engine.gather(state))
    np.testing.assert_allclose(losses[True], losses[False], rtol=0, atol=1e-5)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-4), states[True], states[False])
    assert sizes[True] < sizes[False] / 6
