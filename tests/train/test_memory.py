"""Training in less memory: accumulation, rematerialization and bfloat16 do not change what is optimized."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from settings import METHODS, Plain

from deformreg.losses import cross_entropy
from deformreg.penalties import gradient_penalty, image_gradients
from train import parallel
from train.config import Config
from train.data import Augmentation
from train.methods.penalties import ForwardOverReverse
from train.models import create_model
from train.state import init_state
from train.step import make_step

DESCENT = optax.sgd(1.0)  # one step moves the parameters by minus the gradient


def step_of(config, model, optimizer=DESCENT):
    rate = optax.constant_schedule(1.0)
    method, augmentation = config.method.make(), config.augmentation
    return make_step(method, model, optimizer, rate=rate, augmentation=augmentation, accumulate=config.accumulate)


def batch_of(size, side=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, side, side, 1), dtype=np.uint8),
        "label": rng.integers(0, 4, size).astype(np.int32),
        "position": np.arange(size, dtype=np.int32),
    }


def stepped(config, model, batch, kind=None, devices=1):
    """Metrics, and parameters and statistics after one step of plain descent.

    The step is number 6: radii that grow over 4 steps have grown, and a penalty of every third step is due.
    """
    state, step = init_state(model, DESCENT, batch["image"].shape[1:], 0), step_of(config, model)
    state = state._replace(step=state.step + 6)
    if kind is None:
        after, metrics = jax.jit(step)(state, batch)
    else:
        engine = parallel.make_engine(kind, devices=devices, batch_size=len(batch["label"]))
        after, metrics = engine.compile(step)(engine.put_state(state), engine.feed(batch))
    tree = {"metrics": metrics, "params": after.params, "batch_stats": after.batch_stats}
    return jax.tree.map(np.asarray, tree)


def assert_close(tree, expected, atol):
    for (path, value), reference in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(value, reference, rtol=1e-5, atol=atol, err_msg=jax.tree_util.keystr(path))


# Accumulation.


@cache
def standard():
    return stepped(Config(augmentation=Augmentation(shift=1)), Plain(), batch_of(128))["params"]


@pytest.mark.slow
def test_one_batch_of_128_is_four_of_32():
    # With group normalization, an example does not depend on its batch.
    config = Config(method=METHODS["random start"], augmentation=Augmentation(shift=1, flip=True))
    model, batch = create_model("small-cnn", num_classes=4, width=0.25, norm="group"), batch_of(128)
    whole = stepped(config, model, batch)
    assert whole["metrics"]["penalty"] > 1e-4
    assert_close(stepped(replace(config, accumulate=4), model, batch), whole, atol=1e-5)


QUICK = ("flow-gradient",)


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name not in QUICK)]
)
def test_every_method_accumulates(name):
    config, batch = Config(method=METHODS[name], augmentation=Augmentation(shift=1)), batch_of(128)
    whole = stepped(config, Plain(), batch)
    others = ravel_pytree(standard())[0] - ravel_pytree(whole["params"])[0]
    assert name == "standard" or jnp.abs(others).max() > 0.01  # else nothing of the method is compared
    # The difference divides losses, rounded to 1e-7, by its step size of 0.01.
    atol = 1e-4 if name == "finite difference" else 1e-5
    assert_close(stepped(replace(config, accumulate=4), Plain(), batch), whole, atol=atol)


def test_a_step_converts_no_more_images_than_a_part_has():
    model, batch = Plain(), batch_of(128)

    def largest(accumulate):
        """The number of elements of the largest array of floats in the program."""
        step = step_of(Config(method=METHODS["flow-gradient"], accumulate=accumulate), model)
        text = jax.jit(step).lower(init_state(model, DESCENT, (8, 8, 1), 0), batch).as_text()
        return max(math.prod(map(int, shape.split("x"))) for shape in re.findall(r"tensor<([\dx]+)xf32>", text))

    whole = 2 * 128 * 8 * 8  # a flow for every image
    assert [largest(1), largest(4)] == [whole, whole // 4]


@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        pytest.param("pmap", "group", marks=pytest.mark.slow),
        pytest.param("jit", "group", marks=pytest.mark.slow),
        pytest.param("jit", "batch", marks=pytest.mark.slow),
    ],
)
def test_devices_accumulate_the_same_parts(kind, norm):
    config, model, batch = Config(method=METHODS["flow-gradient"], accumulate=2), Plain(norm), batch_of(24)
    assert_close(stepped(config, model, batch, kind, devices=4), stepped(config, model, batch), atol=1e-5)


def test_batch_statistics_are_the_mean_over_micro_batches():
    model, batch = Plain("batch"), batch_of(24)
    found = stepped(Config(accumulate=3), model, batch)["batch_stats"]["BatchNorm_0"]
    parts = (batch["image"].reshape(8, 3, 64) / 255.0).astype(np.float32)
    dense = init_state(model, DESCENT, (8, 8, 1), 0).params["Dense_0"]
    features = parts @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    np.testing.assert_allclose(found["mean"], 0.1 * features.mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * features.var(0).mean(0), atol=1e-6)


# Rematerialization.

PENALIZED = ("input-gradient", "flow-gradient", "random start", "every third", "a quarter", "both")


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("running statistics", "batch"),
        *(pytest.param(name, "group", marks=pytest.mark.slow) for name in PENALIZED),
        pytest.param("random start", "batch", marks=pytest.mark.slow),
    ],
)
def test_steps_forward_over_reverse_are_the_same_steps(name, norm):
    config, model, batch = Config(method=METHODS[name], accumulate=2), Plain(norm), batch_of(24)
    other = replace(config, method=replace(config.method, rule=ForwardOverReverse()))
    assert_close(stepped(other, model, batch), stepped(config, model, batch), atol=1e-5)


def test_rematerialized_stages_are_recomputed_under_the_forward_over_reverse_penalty():
    # XLA for CPUs merges what is computed twice, so this looks at the program before XLA optimizes it.
    def text(remat):
        model = create_model("small-cnn", num_classes=4, width=0.25, norm="group", remat=remat, implementation="lax")
        state, batch = init_state(model, DESCENT, (8, 8, 1), 0), batch_of(8)
        return jax.jit(step_of(Config(method=METHODS["forward over reverse"]), model)).lower(state, batch).as_text()

    kept, recomputed = text(False), text(True)
    assert kept.count("optimization_barrier") == 0 < recomputed.count("optimization_barrier")
    assert recomputed.count("stablehlo.convolution") > 1.3 * kept.count("stablehlo.convolution")


# bfloat16.


@cache
def trained():
    """A state after a few steps and a new batch: gradients at random parameters are not typical."""

    def batch_of_sides(size, seed):
        batch = batch_of(size, seed=seed)
        for image, label in zip(batch["image"], batch["label"], strict=True):
            image[4 * (label // 2) :][:4, 4 * (label % 2) :][:, :4] |= 128
        return batch

    descent = optax.sgd(0.05)
    model = create_model("small-cnn", num_classes=4, width=0.5, norm="group")
    state, step = init_state(model, descent, (8, 8, 1), 0), jax.jit(step_of(Config(), model, descent))
    for seed in range(1, 16):
        state, _ = step(state, batch_of_sides(32, seed))
    return state._replace(opt_state=DESCENT.init(state.params)), batch_of_sides(32, 99)


# One of every kind of pass, penalty and attack: the others repeat the parts of these.
NARROWED = (
    "standard", "flow-gradient", "running statistics", "forward over reverse", "displacement", "deformation", "greedy",
    "trades", "mart", "spatial", "llr", "cure",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROWED)
def test_bfloat16_changes_a_step_by_its_rounding_only(name):
    # A product in bfloat16 has an error of up to 2**-8. Forward and backward pass chain some ten products, whose errors
    # mostly cancel: a few per cent, and more where an attack follows the signs of gradients.
    (state, batch), found = trained(), {}
    for dtype in (jnp.float32, jnp.bfloat16):
        model = create_model("small-cnn", num_classes=4, width=0.5, norm="group", dtype=dtype)
        after, metrics = jax.jit(step_of(Config(method=METHODS[name]), model))(state, batch)
        values = after.params, [metrics[each] for each in ("loss", "penalty", "gradient_norm")]
        assert {leaf.dtype for leaf in jax.tree.leaves(values)} == {np.dtype(np.float32)}
        gradient = ravel_pytree(jax.tree.map(jnp.subtract, state.params, after.params))[0]
        found[dtype] = metrics, gradient / jnp.linalg.norm(gradient)
    (exact, direction), (rounded, other) = found.values()
    cosine = float(direction @ other)
    print(
        f"{name}: loss {rounded['loss'] / exact['loss']:.5f}, cosine {cosine:.5f}", rounded["penalty"], exact["penalty"]
    )
    np.testing.assert_allclose(rounded["loss"], exact["loss"], rtol=0.01)
    np.testing.assert_allclose(rounded["penalty"], exact["penalty"], rtol=0.05)
    assert cosine > 0.98


def test_the_penalty_of_a_bfloat16_network_is_taken_in_float32():
    model, batch = create_model("small-cnn", num_classes=4, dtype=jnp.bfloat16, norm="group"), batch_of(4)
    images = jnp.asarray(batch["image"], jnp.float32)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images))

    def penalize(variables):
        loss_fn = lambda images: cross_entropy(model.apply(variables, images), batch["label"])  # noqa: E731
        return image_gradients(loss_fn, images), gradient_penalty(loss_fn, images)

    shapes = jax.eval_shape(penalize, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves((shapes, variables))} == {jnp.dtype(jnp.float32)}
