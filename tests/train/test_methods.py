"""Methods as values: what each trains on and adds, its limiting cases, and its cost in passes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from settings import TINY, batches, compiled, network

import deformreg.certification
from deformreg import penalties
from train.config import Model
from train.errors import ConfigError
from train.methods import METHODS as KINDS
from train.methods import Forward, Inputs
from train.methods.adversarial import Adversarial, Deformation
from train.methods.cure import Cure
from train.methods.displacement import Displacement
from train.methods.elle import Elle
from train.methods.fast import Fast, NFgsm
from train.methods.given import Given
from train.methods.gradient import FlowGradient, FlowGradientAdversarial, FlowGradientDeformation, InputGradient
from train.methods.greedy import Greedy
from train.methods.held import held_statistics
from train.methods.inputs import in_turn
from train.methods.llr import Llr
from train.methods.mart import Mart, boosted_loss
from train.methods.noise import Noise
from train.methods.penalties import FiniteDifference, ForwardOverReverse
from train.methods.random_flows import RandomFlows
from train.methods.several import Gradients
from train.methods.spatial import Spatial
from train.methods.standard import Standard
from train.methods.trades import Trades, divergence

KEYS = jax.random.split(jax.random.key(7), 16)


def after_one_step(method, **changes):
    config = replace(TINY, method=method, **changes)
    return compiled(config)(network(config)[1], next(batches(1)))


def assert_same_step(method, other, **tolerance):
    for a, b in zip(
        jax.tree.leaves(after_one_step(method)[0].params), jax.tree.leaves(after_one_step(other)[0].params), strict=True
    ):
        np.testing.assert_allclose(a, b, **(tolerance or {"atol": 1e-6}))


def test_every_kind_makes_a_method_of_its_name():
    for name, kind in KINDS.items():
        if kind is not Given:
            assert kind().make().name == kind().name == name


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (Standard(), 3),
        (InputGradient(), 6),
        (FlowGradient(rule=FiniteDifference()), 8),
        (FlowGradient(rule=ForwardOverReverse()), 8),
        (FlowGradient(every=4), 3.75),
        (FlowGradient(share=0.25), 3.75),
        (FlowGradient(statistics="running"), 9),
        (Deformation(steps=7), 17),
        (FlowGradientAdversarial(steps=7), 20),
        (Spatial(draws=10), 13),
        (RandomFlows(), 3),
        (Noise(), 3),
        (Noise(family="affine", flow_gradient=1.0), 6),
        (FlowGradient(size="linf"), 6),
        (Trades(steps=10), 26),
        (Mart(steps=10), 26),
        (Greedy(), 5),
        (Fast(), 5),
        (NFgsm(), 5),
        (Elle(), 14),
        (Elle(steps=0), 12),
        (Cure(), 12),
        (Displacement(), 6),
        (Gradients(affine=0.1), 6),
        (Gradients(statistics="running"), 9),
        (Displacement(statistics="running"), 9),
        (Llr(steps=10), 29),
        (Llr(steps=10, statistics="running"), 32),
    ],
)
def test_the_cost_of_a_step_in_passes(method, passes):
    assert method.make().passes == passes


def test_the_mean_cost_of_a_training_counts_the_steps_before_the_penalty():
    assert FlowGradient(first_step=60).make().mean_passes(90) == pytest.approx(4.0)
    assert FlowGradient(first_step=60).make().mean_passes(30) == pytest.approx(3.0)
    assert FlowGradient(every=4).make().mean_passes(90) == pytest.approx(3.75)


ONE_STEP = [
    Adversarial(steps=1),
    Deformation(steps=1),
    FlowGradientDeformation(steps=1),
    FlowGradientAdversarial(steps=1),
    Trades(steps=1),
    Mart(steps=1),
    Elle(steps=1),
]


@pytest.mark.parametrize("method", ONE_STEP, ids=lambda method: method.name)
def test_training_with_one_step_is_watched_under_more(method):
    assert method.make().watch.passes == 20
    assert replace(method, steps=2).make().watch is None


@pytest.mark.slow
def test_greedy_training_is_watched_and_sees_the_images_of_the_greedy_step():
    images = jax.random.uniform(jax.random.key(1), (3, 6, 6, 1))
    forward = Forward(Bare(), {}, {}, jnp.zeros(3, int), jax.random.split(jax.random.key(0), 3), step=1)
    method, ramped = (Greedy(radius=0.4, radius_ramp_steps=steps).make() for steps in (0, 2))
    assert method.watch.passes == 20
    for each, radius in ((method, 0.4), (ramped, 0.2)):
        loss_fn, ball = partial(forward.losses, statistics="batch"), deformreg.linf(radius)
        expected = jax.jit(partial(deformreg.greedy_step, loss_fn, ball=ball))(images).images
        found = jax.jit(partial(each.inputs.make, forward, keys=forward.keys))(images)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_inputs_in_turn_draw_from_other_keys():
    """Than each other, and than the network (1), ELLE (2) and mixing (3)."""
    drawn = []

    def record(forward, images, keys):
        drawn.append(keys)
        return images

    keys = jax.random.split(jax.random.key(0), 3)
    in_turn(Inputs(record), Inputs(record)).make(None, jnp.zeros((3, 4, 4, 1)), keys)
    drawn += [jax.vmap(jax.random.fold_in, (0, None))(keys, number) for number in (1, 2, 3)]
    data = np.concatenate([jax.random.key_data(each) for each in drawn])
    assert len(np.unique(data, axis=0)) == len(data) == 15


@pytest.mark.slow
def test_noise_is_that_of_the_certificate():
    forward = Forward(Bare(), {}, {}, jnp.zeros(3, int), keys := jax.random.split(jax.random.key(0), 3))
    images = jax.random.uniform(jax.random.key(1), (3, 6, 6, 1))
    noisy = Noise(family="rotation", sigma=(20.0,)).make().inputs.make(forward, images, keys)
    family = deformreg.affine(parameters=("rotation",), boundary="zeros")
    law = deformreg.certification.gaussian(np.deg2rad(20.0))
    for key, image, found in zip(keys, images, noisy, strict=True):
        expected = family.apply(law.noise(key, jnp.zeros((1, 1))), image[None])[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("family", "sigma"), [("rotation", (1.0, 2.0)), ("affine", (1.0,))])
def test_noise_of_another_number_of_parameters_is_refused(family, sigma):
    with pytest.raises(ConfigError, match=r"--method\.sigma must be"):
        Noise(family=family, sigma=sigma).make()


def test_a_stride_of_noise_without_a_coarse_flow_is_refused():
    with pytest.raises(ConfigError, match=r"--method\.stride needs --method\.family smooth, got flow"):
        Noise(stride=3).make()


def test_gradients_without_any_weight_are_refused():
    with pytest.raises(ConfigError, match=r"needs a weight above 0: --method\.flow"):
        Gradients(flow=0.0, pixels=0.0).make()


@pytest.mark.slow
def test_penalties_of_several_families_are_summed_with_their_weights():
    parts = [{"flow": 2.0}, {"pixels": 0.3}, {"affine": 0.01}]
    none = {"flow": 0.0, "pixels": 0.0, "affine": 0.0}
    alone = [after_one_step(Gradients(**none | part))[1]["penalty"] for part in parts]
    together = after_one_step(Gradients(**parts[0] | parts[1] | parts[2]))[1]["penalty"]
    assert min(alone) > 0
    np.testing.assert_allclose(together, sum(alone), rtol=1e-5)


class Bare(nn.Module):
    """Four features of an image as its logits."""

    @nn.compact
    def __call__(self, images, *, train):
        return images[:, 0, :4, 0]


@pytest.mark.parametrize("soft", [False, True])
def test_the_weights_of_classes_weight_the_boosted_loss(soft):
    images, labels = jax.random.uniform(jax.random.key(0), (4, 4, 4, 1)), jnp.array([0, 1, 2, 3])
    weights, keys = jnp.array([1.0, 2.0, 3.0, 0.0]), jax.random.split(jax.random.key(1), 4)
    labels = jax.nn.one_hot(labels, 4) if soft else labels
    penalty = Mart(steps=1, radius=1e-6, family="pixels").make().penalty
    plain, weighted = (
        penalty.terms(Forward(Bare(), {}, {}, labels, keys, weights=each), images, keys).losses
        for each in (None, weights)
    )
    np.testing.assert_allclose(weighted, plain * weights, rtol=1e-4)


@pytest.mark.slow
def test_both_exact_rules_take_the_same_step():
    exact = FlowGradient(weight=3.0)
    assert_same_step(exact, replace(exact, rule=ForwardOverReverse()))


@pytest.mark.slow
def test_a_share_of_the_batch_is_penalized_with_the_same_weight():
    _, metrics = after_one_step(FlowGradient(share=0.25))
    _, whole = after_one_step(FlowGradient())
    model, state, _ = network(TINY)
    (batch,) = batches(1)
    images, labels = batch["image"][:4].astype(np.float32) / 255, batch["label"][:4]
    forward = Forward(model, state.params, state.batch_stats, labels, jax.random.split(jax.random.key(0), 4))
    penalties, _ = deformreg.gradient_penalty(lambda some: forward.losses(some, "batch"), jnp.asarray(images))
    np.testing.assert_allclose(metrics["penalty"], penalties.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], whole["loss"], rtol=1e-5)


@pytest.mark.slow
def test_all_images_count_in_the_running_statistics_when_a_share_is_penalized():
    share = FlowGradient(share=0.25).make()
    model, state, _ = network(replace(TINY, model=Model(width=0.1, norm="batch")))
    (batch,) = batches(1)
    images, labels = jnp.asarray(batch["image"], jnp.float32) / 255, batch["label"]
    keys = jax.random.split(jax.random.key(0), len(images))

    def statistics(rows):
        forward = Forward(model, state.params, state.batch_stats, labels[rows], keys[rows])
        return jax.jit(forward.train)(images[rows])[1].batch_stats

    count = len(images) // 4
    first, rest = statistics(slice(count)), statistics(slice(count, None))
    expected = jax.tree.map(lambda a, b: (a + 3 * b) / 4, first, rest)
    forward = Forward(model, state.params, state.batch_stats, labels, keys)
    found = jax.jit(partial(share.penalty.terms, forward))(images, keys).aux.batch_stats
    assert jax.tree.leaves(found)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "penalty"),
    [
        (FlowGradient(size="linf"), partial(deformreg.gradient_penalty, size=deformreg.linf(1.0).support)),
        (InputGradient(size="l2"), partial(
            deformreg.gradient_penalty, perturbation=deformreg.additive(), size=deformreg.l2(1.0).support
        )),
        (Displacement(radius=0.2), lambda loss_fn, images: penalties.displacement_penalty(loss_fn, images, 0.2)),
        (Cure(radius=0.2), partial(penalties.curvature_penalty, ball=deformreg.linf(0.2))),
        (Llr(radius=0.2, steps=2, slope_weight=0.5), partial(
            penalties.linearization_penalty, ball=deformreg.linf(0.2), num_steps=2, slope_weight=0.5, key=KEYS
        )),
        (Elle(radius=0.2, steps=0), partial(
            penalties.local_linearity_penalty, ball=deformreg.linf(0.2),
            key=jax.vmap(jax.random.fold_in, (0, None))(KEYS, 2),
        )),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_penalties_are_those_of_the_library(method, penalty):
    """With its ball, its family and its random keys; the weight is the schedule's."""
    model, state, _ = network(TINY)
    (batch,) = batches(1)
    images, labels = jnp.asarray(batch["image"], jnp.float32) / 255, jnp.asarray(batch["label"])

    @jax.jit
    def both(images):
        forward = Forward(model, state.params, state.batch_stats, labels, KEYS)
        expected, _ = penalty(lambda some: forward.losses(some, "batch"), images)
        return method.make().penalty.terms(forward, images, KEYS).penalties, expected

    found, expected = both(images)
    assert (expected > 0).all()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert method.make().weight(0) == pytest.approx(method.weight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "limit"),
    [
        (Trades(beta=0.0, radius=0.2, steps=2), Standard()),
        (Elle(weight=0.0, steps=0), Standard()),
        (Cure(weight=0.0), Standard()),
        (Llr(weight=0.0, steps=1), Standard()),
        (Elle(weight=0.0, steps=1, radius=0.2), Deformation(steps=1, radius=0.2)),
        (Fast(step=2.5, radius=0.2), Deformation(steps=1, radius=0.2)),
        (NFgsm(radius=1e-9), Standard()),
        (Mart(beta=0.0, radius=1e-9, steps=1), Mart(radius=1e-9, steps=1)),
        (Deformation(radius=0.2, steps=1, radius_ramp_steps=4), Standard()),
        (FlowGradient(weight_ramp_steps=4), Standard()),
        (Displacement(weight_ramp_steps=4), Standard()),
        (Displacement(radius=1e-9), Standard()),
        (Gradients(weight_ramp_steps=4), Standard()),
        (Gradients(flow=2.0, pixels=0.0), FlowGradient(weight=2.0)),
        (Gradients(flow=0.0, pixels=0.3), InputGradient(weight=0.3)),
    ],
    ids=lambda method: method.name,
)
def test_a_methods_limit_is_a_simpler_method(method, limit):
    """Without a weight, at radius zero, with one step, and on the first step of a ramp."""
    assert_same_step(method, limit, atol=1e-5)


@pytest.mark.slow
def test_a_ramp_ends_at_the_whole_radius_and_the_whole_weight():
    for ramped, whole in (
        (Deformation(radius=0.2, steps=1, radius_ramp_steps=4), Deformation(radius=0.2, steps=1)),
        (FlowGradient(weight=2.0, weight_ramp_steps=4), FlowGradient(weight=2.0)),
    ):
        state, (batch,) = network(TINY)[1]._replace(step=np.int32(4)), batches(1)
        after, expected = (compiled(replace(TINY, method=method))(state, batch)[0] for method in (ramped, whole))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, expected.params)
    assert [float(FlowGradient(weight=2.0, weight_ramp_steps=4).make().weight(step)) for step in (0, 1, 9)] == [
        0,
        0.5,
        2,
    ]


@pytest.mark.slow
def test_the_boosted_loss_is_that_of_the_paper():
    logits, labels = jax.random.normal(jax.random.key(0), (5, 4)), jnp.array([0, 1, 2, 3, 0])
    probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
    right = probabilities[np.arange(5), labels]
    rival = np.where(np.arange(4) == np.asarray(labels)[:, None], 0, probabilities).max(1)
    np.testing.assert_allclose(boosted_loss(logits, labels), -np.log(right) - np.log(1 - rival), rtol=1e-5)
    sure = boosted_loss(jnp.array([[0.0, 100.0]]), jnp.array([0]))  # 1 - p rounds to zero
    np.testing.assert_allclose(sure, 200.0, rtol=1e-6)


def test_noise_fgsm_steps_from_noise_without_a_projection():
    """Of the loss of a linear network, whose steps are known."""
    images, keys = jnp.full((4, 8, 8, 1), 0.5), jax.random.split(jax.random.key(1), 4)

    class Linear(NamedTuple):
        step: int = 0

        def fixed(self):
            return self

        def losses(self, images, statistics):
            return jnp.sum(images, axis=(1, 2, 3))

    moved = np.asarray(NFgsm(family="pixels", radius=0.1).make().inputs.make(Linear(), images, keys))
    assert 0.4 - 1e-6 < moved.min() < 0.45  # 0.5 + 0.1 and noise within 0.2
    assert 0.75 < moved.max() < 0.8 + 1e-6
    projected = np.asarray(Fast(family="pixels", radius=0.1).make().inputs.make(Linear(), images, keys))
    assert projected.min() > 0.5
    assert 0.6 - 1e-6 < projected.max() <= 0.6 + 1e-6
    later = NFgsm(family="pixels", radius=0.1, radius_ramp_steps=4).make().inputs.make(Linear(1), images, keys)
    np.testing.assert_allclose(later - images, (moved - images) / 4, atol=1e-6)


@pytest.mark.slow
def test_trades_ascends_the_divergence_and_adds_it():
    weak, strong = (after_one_step(Trades(radius=radius, steps=3))[1]["penalty"] for radius in (1e-6, 1.0))
    assert abs(weak) < 1e-6 < strong  # a divergence that is zero may be rounded below it
    _, pixels = after_one_step(Trades(family="pixels", radius=0.1, steps=2))
    assert pixels["penalty"] > 1e-6


def test_the_divergence_is_that_of_the_distributions():
    logits, others = jax.random.normal(jax.random.key(0), (2, 5, 4))
    first, second = jax.nn.softmax(logits), jax.nn.softmax(others)
    expected = np.sum(first * np.log(first / second), axis=1)
    np.testing.assert_allclose(divergence(logits, others), expected, rtol=1e-5)
    np.testing.assert_allclose(divergence(logits, logits), np.zeros(5), atol=1e-6)


def test_random_flows_are_smooth_and_bounded():
    images = jnp.linspace(0, 1, 16)[None, None, :, None] * jnp.ones((2, 16, 16, 1))
    keys = jax.random.split(jax.random.key(1), 2)
    moved = RandomFlows(radius=0.5, stride=8).make().inputs.make(None, images, keys)
    change = np.asarray(moved - images)[:, 2:-2, 2:-2]
    assert 0 < np.abs(change).max() <= 0.5 / 15 + 1e-6  # half a pixel of a ramp of 1/15
    assert np.abs(np.diff(change, axis=2)).max() < 0.5 * np.abs(change).max()
    assert np.abs(change[0] - change[1]).max() > 0


@pytest.mark.slow
def test_a_deformation_of_radius_zero_is_standard_training():
    assert_same_step(Deformation(radius=1e-9, steps=2), Standard(), atol=1e-5)


class WithBatchNorm(nn.Module):
    """Two layers in double precision; its running statistics are those of the last batch."""

    @nn.compact
    def __call__(self, images, train=True):
        wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        for features in (3, 4):
            images = nn.Dense(features, **wide)(images)
            images = nn.softplus(nn.BatchNorm(use_running_average=not train, momentum=0.0, **wide)(images))
        return nn.Dense(3, **wide)(images.mean((1, 2)))


@pytest.mark.slow
def test_held_statistics_are_constants_of_the_inner_gradient_alone(float64):
    """Against the penalty on the batch's statistics given as numbers, which are functions of the parameters."""
    model, labels = WithBatchNorm(), jnp.array([0, 1, 2, 1])
    images = jax.random.uniform(jax.random.key(0), (4, 3, 3, 2), jnp.float64)
    variables = model.init(jax.random.key(1), images)

    def forward(params, batch_stats):
        return Forward(model, params, batch_stats, labels, jax.random.split(jax.random.key(2), 4))

    def objective(losses, penalties):
        return losses.mean() + 3.0 * penalties.mean(), (losses, penalties)

    def held(params):
        with held_statistics():
            penalties, (losses, _) = deformreg.gradient_penalty(
                forward(params, variables["batch_stats"]).train, images, has_aux=True
            )
        return objective(losses, penalties)

    def given(params):
        losses, aux = forward(params, variables["batch_stats"]).train(images)
        on_statistics = forward(params, aux.batch_stats)
        penalties, _ = deformreg.gradient_penalty(lambda some: on_statistics.losses(some, "running"), images)
        return objective(losses, penalties)

    def of_batch(params):
        train = forward(params, variables["batch_stats"]).train
        penalties, (losses, _) = deformreg.gradient_penalty(train, images, has_aux=True)
        return objective(losses, penalties)

    found, expected, other = (
        jax.jit(jax.grad(function, has_aux=True))(variables["params"]) for function in (held, given, of_batch)
    )
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12), found, expected)
    assert not np.allclose(found[1][1], other[1][1], rtol=1e-2)


@pytest.mark.parametrize("name", ["", "x"], ids=["by place", "by keyword"])
def test_a_single_image_has_the_penalty_that_it_has_in_a_batch_with_held_statistics(name):
    """With the batch's own statistics as constants, another image's loss has no gradient with respect to this one."""
    norm = nn.BatchNorm(use_running_average=False)
    images = jax.random.normal(jax.random.key(0), (4, 2, 2, 3))
    variables = norm.init(jax.random.key(1), images)

    def outputs(images):
        with held_statistics():
            given = {name: images} if name else {}
            return norm.apply(variables, *([] if name else [images]), mutable=["batch_stats"], **given)[0]

    (gradient,) = jax.vjp(outputs, images)[1](jnp.zeros_like(images).at[0].set(1.0))
    np.testing.assert_allclose(gradient[0], jnp.broadcast_to(images.std((0, 1, 2)) ** -1, (2, 2, 3)), rtol=1e-3)
    np.testing.assert_array_equal(gradient[1:], 0)


class OwnNorm(nn.Module):
    """A normalization by the batch that Flax's layers have no part in."""

    @nn.compact
    def __call__(self, images, train=True):
        mean = self.variable("batch_stats", "mean", jnp.zeros, ())
        mean.value = images.mean()
        return nn.Dense(2)((images - mean.value).mean((1, 2)))


def test_statistics_that_cannot_be_held_are_refused():
    images, model = jnp.ones((2, 3, 3, 1)), OwnNorm()
    variables = model.init(jax.random.key(0), images)
    keys = jax.random.split(jax.random.key(1), 2)
    forward = Forward(model, variables["params"], variables["batch_stats"], jnp.array([0, 1]), keys)
    with pytest.raises(ConfigError, match=r"held needs a network with flax\.linen\.BatchNorm"):
        FlowGradient(statistics="held").make().penalty.terms(forward, images, keys)
