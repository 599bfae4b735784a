"""Every method with every kind of network.

Pairs are traced, in float32 or bfloat16, with or without accumulation and recomputation, by a seeded draw: what fails
to differentiate, or mixes types or shapes, fails when it is traced. By default every method is traced with two
networks; ``--pairs 160`` traces all pairs, which takes minutes. Four networks of different kinds run, each with one
method, under pmap or jit: two steps on one device and on four. The others share their parts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

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
IN_TURN = sorted(PAIRS, key=lambda pair: (list(ONE_OF_EACH).index(pair[0]) + list(NETWORKS).index(pair[1])) % 4)
"""Of which the first quarter has every method and every network."""

RUN = (("trades", "basic"), ("flow-gradient+deformation", "bottleneck"), ("spatial", "convnext"), ("llr", "vit"))
TURNS = np.random.default_rng(0).integers(0, 2, (len(PAIRS), 4))
OPTIMIZER = TINY.optimizer.make(0.02)


@cache
def initial(network):
    """The state before the first step, not computed."""
    return partial(init_state, NETWORKS[network], OPTIMIZER, (8, 8, 1), 0)


@cache
def shapes(network):
    return jax.eval_shape(initial(network))


def turn_of(pair):
    """The options of a pair: ``(narrow, accumulate, remat, mapped)``."""
    narrow, *others = map(bool, TURNS[PAIRS.index(pair)])
    return narrow and pair[0] != "elle", *others  # which is refused in bfloat16


def step_of(pair, *, axis=None):
    method, name = pair
    narrow, accumulate, remat, _ = turn_of(pair)
    style = replace(
        NETWORKS[name].style, dtype=jnp.bfloat16 if narrow else jnp.float32, dropout=0.2,
        stochastic_depth=0.2 * (name != "chain"), axis_name=axis,
    )  # fmt: skip
    return make_step(
        ONE_OF_EACH[method].make(), NETWORKS[name].clone(style=style, remat=remat), OPTIMIZER,
        rate=lambda step: 0.02, augmentation=TINY.augmentation, labels=Labels(smoothing=0.1 * (len(method) % 2)),
        num_classes=4, accumulate=1 + accumulate,
    )  # fmt: skip


def test_every_method_is_there():
    assert set(ONE_OF_EACH) == set(KINDS) - {"given"}
    assert len(PAIRS) == 160  # as `--pairs` above
    methods, networks = map(set, zip(*IN_TURN[: len(PAIRS) // 4], strict=True))
    assert methods == set(ONE_OF_EACH)
    assert networks == set(NETWORKS)


@pytest.mark.slow
def test_pairs_are_differentiated(pytestconfig):
    (batch,) = batches(1)
    for pair in IN_TURN[: pytestconfig.getoption("pairs") or len(PAIRS) // 4]:
        before = shapes(pair[1])
        after, metrics = jax.eval_shape(step_of(pair), before, batch)
        described = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) for state in (before, after)]
        assert described[0] == described[1], pair
        assert metrics["loss"].dtype == metrics["penalty"].dtype == jnp.float32, pair


@pytest.mark.slow
@pytest.mark.parametrize("pair", RUN, ids=" with ".join)
def test_methods_and_networks_train_alike_on_one_device_and_four(pair):
    narrow, *_, mapped = turn_of(pair)
    step, each = step_of(pair, axis=parallel.AXIS if mapped else None), []
    start = jax.jit(initial(pair[1]))()
    for devices in (1, 4):
        engine = parallel.make_engine("pmap" if mapped else "jit", devices=devices, batch_size=16)
        state, compiled, losses = engine.put_state(start), engine.compile(step), []
        for batch in batches(2):
            state, metrics = compiled(state, engine.feed(batch))
            assert all(np.isfinite(value) for value in metrics.values())
            losses.append(float(metrics["loss"]))
        assert (int(state.step), int(state.skipped)) == (2, 0)
        each.append(losses)
    np.testing.assert_allclose(each[1][0], each[0][0], rtol=5e-3 if narrow else 1e-5)
    np.testing.assert_allclose(each[1][1], each[0][1], rtol=2e-2 if narrow else 1e-4)  # gradients are of all devices
