"""The training step: what it computes, for every method, on any number of devices."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from settings import METHODS, TINY, batches, compiled, network

import deformreg
from deformreg import cross_entropy
from train import parallel
from train.config import Model
from train.data import Augmentation, example_keys
from train.methods import Method, Penalty, Terms
from train.methods.adversarial import Deformation
from train.methods.gradient import FlowGradient
from train.methods.spatial import Spatial
from train.methods.standard import Standard
from train.optimizers import Sgd
from train.state import predict
from train.step import make_step


def run(config, devices, kind, steps):
    engine = parallel.make_engine(kind, devices=devices, batch_size=16)
    axis = parallel.AXIS if kind == "pmap" else None
    _, state, step = network(config, axis)
    state, parallel_step, first = engine.put_state(state), engine.compile(step), None
    for batch in batches(steps):
        state, metrics = parallel_step(state, engine.feed(batch))
        first = first or {name: float(value) for name, value in metrics.items()}
    return first, jax.tree.map(np.asarray, state)


COMBINED = (
    "random start",
    "running statistics",
    "finite difference",
    "adversarial",
    "spatial",
    "both, pixels",
    "noise",
    "every third",
    "both",
    "dual norm",
    "a quarter",
    "forward over reverse",
    "random flows",
    "trades",
    "mart",
    "n-fgsm",
    "elle",
    "cure",
    "displacement",
    "gradients",
    "llr",
)  # of what the others compile already


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in COMBINED)) for name in METHODS]
)
def test_every_method_learns_and_reports_finite_metrics(name):
    config = replace(TINY, method=METHODS[name], model=Model(width=0.25, norm="batch"))
    _, state, _ = network(config)
    losses = []
    for batch in batches(12):
        state, metrics = compiled(config)(state, batch)
        assert all(np.isfinite(value) for value in metrics.values())
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert int(state.step) == 12


def test_standard_step_is_plain_sgd():
    config = replace(TINY, optimizer=Sgd(learning_rate=0.1, momentum=0.0, weight_decay=0.01))
    model, state, step = network(config)
    batch = next(batches(1))
    images = batch["image"].astype(np.float32) / 255

    def loss(params):
        logits = model.apply({"params": params}, images, train=True)
        return jnp.mean(cross_entropy(logits, batch["label"]))

    gradients = jax.jit(jax.grad(loss))(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * (g + 0.01 * p), state.params, gradients)
    after, _ = jax.jit(step)(state, batch)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_flow_step_descends_loss_plus_weighted_mean_penalty():
    config = replace(
        TINY,
        method=FlowGradient(weight=3.0),
        optimizer=Sgd(learning_rate=0.1, momentum=0.0, weight_decay=0.0),
    )
    model, state, step = network(config)
    batch = next(batches(1))
    images = jnp.asarray(batch["image"], jnp.float32) / 255

    def objective(params):
        def losses(flow):
            logits = model.apply({"params": params}, deformreg.warp(images, flow), train=True)
            return jnp.sum(cross_entropy(logits, batch["label"]))

        flow = jnp.zeros((16, 8, 8, 2))
        return losses(flow) / 16 + 3.0 * jnp.sum(jax.grad(losses)(flow) ** 2) / 16

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, jax.jit(jax.grad(objective))(state.params))
    after, metrics = jax.jit(step)(state, batch)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert float(metrics["penalty"]) > 0


@pytest.mark.slow
def test_every_kth_step_has_k_times_the_weight():
    every = replace(TINY, method=FlowGradient(every=3))
    tripled = replace(TINY, method=FlowGradient(weight=3.0))
    _, state, _ = network(every)
    for index, batch in enumerate(batches(4)):
        expected, _ = compiled(tripled if index % 3 == 0 else TINY)(state, batch)
        state, metrics = compiled(every)(state, batch)
        assert (float(metrics["penalty"]) > 0) == (index % 3 == 0)
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_steps_before_the_first_one_with_the_penalty_are_standard_ones():
    late = replace(TINY, method=FlowGradient(first_step=2, weight_ramp_steps=2))
    halved = replace(TINY, method=FlowGradient(weight=0.5))
    _, state, _ = network(late)
    for index, batch in enumerate(batches(4)):
        expected, _ = compiled(halved if index == 3 else TINY)(state, batch)
        state, metrics = compiled(late)(state, batch)
        assert (float(metrics["penalty"]) > 0) == (index >= 2)
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@cache
def updated_once():
    """The running statistics after the first batch of undeformed images, from which every method starts."""
    model, state, _ = network(replace(TINY, model=Model(width=0.25, norm="batch")))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    images = next(batches(1))["image"].astype(np.float32) / 255
    return jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, images)[1]["batch_stats"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in COMBINED))
        for name in METHODS
        if name not in ("standard", "random start", "a quarter")
    ],
)
def test_running_statistics_are_updated_once_and_on_the_training_images_only(name):
    method = METHODS[name]
    config = replace(TINY, method=method, model=Model(width=0.25, norm="batch"))
    _, state, _ = network(config)
    after, _ = compiled(config)(state, next(batches(1)))
    # Attacked images are not known here; their statistics stay within one update of the clean ones.
    attacked = method.name in (
        "adversarial",
        "deformation",
        "greedy",
        "flow-gradient+adversarial",
        "flow-gradient+deformation",
        "spatial",
        "random-flows",
        "noise",
        "mart",
        "fast",
        "n-fgsm",
        "elle",
    )
    tolerance = 0.05 if attacked else 1e-5
    for a, b in zip(jax.tree.leaves(after.batch_stats), jax.tree.leaves(updated_once()), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


def test_standard_training_with_a_random_start_sees_gaussian_flow_noise():
    config = replace(TINY, method=Standard(random_start=0.4))
    model, state, _ = network(config)
    batch = next(batches(1))
    _, metrics = compiled(config)(state, batch)
    step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)
    keys = example_keys(jax.random.fold_in(step_key, 1), batch["position"])
    images = batch["image"].astype(np.float32) / 255

    @jax.jit
    def loss(sigma):
        noise = jax.vmap(lambda key: sigma * jax.random.normal(key, (*images.shape[1:3], 2)))(
            jax.vmap(lambda key: jax.random.split(key, 1)[0])(keys)
        )
        noisy = deformreg.warp(images, noise, boundary="zeros")
        return jnp.mean(cross_entropy(model.apply({"params": state.params}, noisy, train=True), batch["label"]))

    assert abs(loss(0.4) - loss(0.0)) > 1e-4
    np.testing.assert_allclose(metrics["loss"], loss(0.4), rtol=1e-5)
    assert metrics["penalty"] == 0


def test_spatial_training_sees_the_worst_of_each_images_own_draws():
    config = replace(TINY, method=Spatial(radius=1.0, degrees=20.0, draws=4))
    model, state, _ = network(config)
    batch = next(batches(1))
    _, metrics = compiled(config)(state, batch)

    @jax.jit
    def tried(draw):
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, draw))(
            example_keys(jax.random.fold_in(step_key, 1), batch["position"])
        )
        limits = jnp.array([jnp.deg2rad(20.0), 1, 1])
        params = jax.vmap(lambda key: jax.random.uniform(key, (3,), minval=-1, maxval=1))(keys) * limits
        images = deformreg.affine(boundary="zeros").apply(params, batch["image"].astype(np.float32) / 255)
        logits = model.apply({"params": state.params}, images, train=True)
        return cross_entropy(logits, batch["label"]), jnp.argmax(logits, axis=1) != batch["label"]

    losses, wrong = (np.stack(values) for values in zip(*(tried(draw) for draw in range(4)), strict=True))
    # A wrong prediction beats a right one, then the higher loss.
    worst = np.lexsort((losses, wrong), axis=0)[-1]
    assert len(np.unique(worst)) > 1
    np.testing.assert_allclose(metrics["loss"], losses[worst, np.arange(16)].mean(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("kind", ["pmap", "jit"])
def test_devices_agree(kind, norm):
    method = FlowGradient(random_start=0.1)
    config = replace(
        TINY,
        method=method,
        model=Model(width=0.25, norm=norm),
        augmentation=Augmentation(shift=1, flip=True),
        parallel=kind,
    )
    first, state = run(config, 1, kind, 20)
    metrics, other = run(config, 8, kind, 20)
    assert abs(metrics["loss"] - first["loss"]) < 1e-5
    assert abs(metrics["penalty"] - first["penalty"]) < 1e-5 * max(first["penalty"], 1e-3)
    for a, b in zip(jax.tree.leaves(other.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_pmap_and_jit_agree():
    config = replace(TINY, method=Deformation(radius=0.2, steps=2), model=Model(width=0.25))
    mapped, state = run(config, 4, "pmap", 3)
    sharded, other = run(config, 4, "jit", 3)
    assert abs(mapped["loss"] - sharded["loss"]) < 1e-5
    for a, b in zip(jax.tree.leaves(other.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_predict_does_not_depend_on_the_batch():
    config = replace(TINY, model=Model(width=0.25, norm="batch"))
    model, state, _ = network(config)
    images = next(batches(1))["image"].astype(np.float32) / 255
    logits_fn = jax.jit(partial(predict, model, state.params, state.batch_stats))
    together, alone = logits_fn(images), logits_fn(images[:1])
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing_but_the_count():
    config = replace(TINY, optimizer=Sgd(learning_rate=1e9), model=Model(width=0.25, norm="batch"))
    _, state, _ = network(config)
    for batch in batches(20):
        before, (state, metrics) = state, compiled(config)(state, batch)
        if int(state.skipped):
            break
    norms = [float(metrics[name]) for name in ("loss", "gradient_norm", "parameter_norm")]
    assert not np.isfinite(norms).all()
    assert (int(metrics["step"]), int(metrics["skipped"])) == (int(before.step), 1)
    jax.tree.map(np.testing.assert_array_equal, state, before._replace(skipped=state.skipped))


def test_a_skipped_batch_leaves_the_training_that_never_had_it():
    """With infinite weights, one batch of a special label is not finite."""
    poison = 99

    def terms(forward, images, keys):
        losses, aux = forward.train(images)
        return Terms(jnp.where(forward.labels[0] == poison, jnp.nan, losses), jnp.zeros_like(losses), aux)

    model, state, _ = network(TINY)
    optimizer = TINY.optimizer.make(0.02)
    method = Method("poisoned", penalty=Penalty(terms, 3.0))
    step = jax.jit(
        make_step(method, model, optimizer, rate=optax.constant_schedule(0.02), augmentation=TINY.augmentation)
    )
    state = state._replace(opt_state=optimizer.init(state.params))
    clean = list(batches(5))
    bad = {**clean[0], "label": np.full(16, poison, np.int32)}
    states = []
    for sequence in (clean, [*clean[:2], bad, *clean[2:4], bad, clean[4]]):
        after = state
        for batch in sequence:
            after, _ = step(after, batch)
        states.append(after)
    assert [int(after.step) for after in states] == [5, 5]
    assert [int(after.skipped) for after in states] == [0, 2]
    jax.tree.map(np.testing.assert_array_equal, *(after._replace(skipped=0) for after in states))


@pytest.mark.parametrize("kind", ["pmap", "jit"])
def test_every_device_skips_what_one_of_them_cannot_use(kind):
    def terms(forward, images, keys):
        losses, aux = forward.train(images)
        return Terms(jnp.where(forward.labels == 99, jnp.inf, losses), jnp.zeros_like(losses), aux)

    model, state, _ = network(TINY)
    optimizer = TINY.optimizer.make(0.02)
    step = make_step(
        Method("one", penalty=Penalty(terms, 3.0)), model, optimizer, rate=optax.constant_schedule(0.02),
        augmentation=TINY.augmentation,
    )  # fmt: skip
    (batch,) = batches(1)
    batch["label"] = np.where(np.arange(16) == 5, 99, batch["label"]).astype(np.int32)
    engine = parallel.make_engine(kind, devices=4, batch_size=16)
    before = state._replace(opt_state=optimizer.init(state.params))
    after, _ = engine.compile(step)(engine.put_state(before), engine.feed(batch))
    assert (int(after.step), int(after.skipped)) == (0, 1)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(before.params), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
