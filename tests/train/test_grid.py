"""Every method with every kind of network.

Every pair is traced once. In turn it is under pmap and jit, in float32 and bfloat16, with and without accumulation and
recomputation: what fails to differentiate, or mixes types or shapes, fails when it is traced. Compiling every pair
would take minutes, so one pair of each method runs, with all networks in turn: two steps on one device and on four.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from settings import METHODS, SMALL, TINY, batches

from train import parallel
from train.data import Labels
from train.methods import METHODS as KINDS
from train.methods.fast import Fast
from train.models import chain
from train.models.blocks import Style
from train.state import init_state
from train.step import make_step

NETWORKS = {**SMALL, "chain": chain.Chain(((8, 1), (16, 2)), 4, style=Style(activation="gelu"))}
ONE_OF_EACH = {method.name: method for method in (Fast(radius=0.2), *reversed(METHODS.values()))}
PAIRS = [(method, network) for method in ONE_OF_EACH for network in NETWORKS]


def prepared(pair, devices):
    """``(engine, state, compiled step, whether the arithmetic is narrow)`` of a pair, with its turn of the rest."""
    method, name = pair
    turn = PAIRS.index(pair) + PAIRS.index(pair) // len(NETWORKS)  # not the same for a network under every method
    narrow, accumulate, remat, mapped = (bool(turn >> bit & 1) for bit in range(4))
    narrow = narrow and method != "elle"  # which is refused
    kind = "pmap" if mapped else "jit"
    dtype = jnp.bfloat16 if narrow else jnp.float32
    style = replace(
        NETWORKS[name].style, dtype=dtype, dropout=0.2, stochastic_depth=0.2 * (name != "chain"),
        axis_name=parallel.AXIS if mapped else None,
    )  # fmt: skip
    model = NETWORKS[name].clone(style=style, remat=remat)
    optimizer = TINY.optimizer.make(0.02)
    step = make_step(
        ONE_OF_EACH[method].make(), model, optimizer, rate=lambda step: 0.02, augmentation=TINY.augmentation,
        labels=Labels(smoothing=0.1 * (turn % 3 == 0)), num_classes=4, accumulate=1 + accumulate,
    )  # fmt: skip
    engine = parallel.make_engine(kind, devices=devices, batch_size=16)
    return engine, partial(init_state, model, optimizer, (8, 8, 1), 0), engine.compile(step), narrow


def test_every_method_is_there():
    assert set(ONE_OF_EACH) == set(KINDS) - {"given"}


@pytest.mark.slow
def test_every_pair_is_differentiated():
    (batch,) = batches(1)
    for pair in PAIRS:
        engine, init, step, _ = prepared(pair, 4)
        before = jax.eval_shape(init)
        after, metrics = jax.eval_shape(step, before, jax.eval_shape(engine.put_batch, batch))
        described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (before, after))
        assert described[0] == described[1], pair
        assert metrics["loss"].dtype == metrics["penalty"].dtype == jnp.float32, pair


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(ONE_OF_EACH)), ids=list(ONE_OF_EACH))
def test_methods_and_networks_train_alike_on_one_device_and_four(index):
    pair = list(ONE_OF_EACH)[index], list(NETWORKS)[index % len(NETWORKS)]
    first = []
    for devices in (1, 4):
        engine, init, step, narrow = prepared(pair, devices)
        state, losses = engine.put_state(jax.jit(init)()), []
        for batch in batches(2):
            state, metrics = step(state, engine.feed(batch))
            assert all(np.isfinite(value) for value in metrics.values())
            losses.append(float(metrics["loss"]))
        assert (int(state.step), int(state.skipped)) == (2, 0)
        first.append(losses[0])
    np.testing.assert_allclose(first[1], first[0], rtol=5e-3 if narrow else 1e-5)
