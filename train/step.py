"""The training step: a pure function of a method, a state and a batch.

Random numbers come from the run's key, the step and an example's position in the global batch, so that a step does not
depend on how the batch is divided over devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from train.data import Augmentation, Labels, augment, example_keys
from train.data.labels import HARD, mix, neighbours, smooth
from train.methods import NO_PENALTY, Forward, Method
from train.state import State, Tree, averaged

Batch = dict[str, Array]
Metrics = dict[str, Array]
T = TypeVar("T")


class Step(Protocol):
    """A training step.

    A batch is ``{"image": uint8[n, h, w, c], "label": int32[n], "position": int32[n]}``, the latter the examples'
    places in the global batch, and with ``"stop": float[devices]`` it says which devices are asked to stop. With
    `axis`, gradients, statistics and metrics are averaged over that mapped axis. Metrics are scalars of the whole
    batch: step and skipped (the state's, after the step), loss, penalty, accuracy, learning_rate, gradient_norm, the
    parameter_norm that the step led to, and stop, the sum.
    """

    def __call__(self, state: State, batch: Batch, *, axis: str | None = None) -> tuple[State, Metrics]: ...


class Outcome(NamedTuple):
    """What an objective yields beside its gradient."""

    loss: Array
    penalty: Array
    accuracy: Array
    batch_stats: Tree


def make_step(
    method: Method,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    rate: optax.Schedule,
    augmentation: Augmentation,
    labels: Labels = HARD,
    num_classes: int = 0,
    accumulate: int = 1,
    average: float = 0.0,
) -> Step:
    """Builds the step of a method.

    A step whose loss, gradient or new parameters are not finite changes nothing but the state's count of skipped
    batches: every device sees the same averages, so all of them skip it.

    Args:
        method: what a step trains on, and what it adds to the loss.
        model: the network.
        optimizer: an Optax transformation.
        rate: the learning rate as a function of the step, for the metrics.
        augmentation: of the training images.
        labels: how labels are softened and classes weighted.
        num_classes: of soft labels.
        accumulate: parts into which a batch is divided, one after the other.
        average: decay of the moving averages that a state may keep.
    """

    def step(state: State, batch: Batch, *, axis: str | None = None) -> tuple[State, Metrics]:
        batch = dict(batch)
        stop = jnp.sum(batch.pop("stop", jnp.zeros(())))
        if labels.mixes:
            batch |= {f"other_{name}": neighbours(leaf) for name, leaf in batch.items()}

        def gradient(of: Method) -> tuple[Outcome, Tree]:
            def of_part(part: Batch) -> tuple[Outcome, Tree]:
                forward, images, keys = _examples(model, state, part, augmentation, labels, num_classes)
                return _gradient(of, forward, images, keys)

            return _mean_over_parts(of_part, batch, accumulate)

        if method.every > 1 or method.first_step > 0:
            bare = method._replace(penalty=NO_PENALTY)
            outcome, gradients = jax.lax.cond(
                method.is_due(state.step), lambda: gradient(method), lambda: gradient(bare)
            )
        else:
            outcome, gradients = gradient(method)
        if axis is not None:
            outcome, gradients = jax.lax.pmean((outcome, gradients), axis)
            # With the metrics of the same step, all processes learn after which one to stop.
            stop = jax.lax.psum(stop, axis)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": outcome.loss,
            "penalty": outcome.penalty,
            "accuracy": outcome.accuracy,
            "learning_rate": jnp.asarray(rate(state.step), jnp.float32),
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
            "stop": stop,
        }
        # The parameters too: a step of finite loss can lead to some that are not.
        norms = jnp.stack([metrics[name] for name in ("loss", "gradient_norm", "parameter_norm")])
        means = state.average and averaged(state.average, (params, outcome.batch_stats), state.step, average)
        taken = State(state.step + 1, state.skipped, params, outcome.batch_stats, opt_state, state.key, means)
        left_out = state._replace(skipped=state.skipped + 1)
        finite = jnp.isfinite(norms).all()
        # In the old type: a mean over devices or parts makes floats of the counts that an own network may keep.
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old).astype(old.dtype), taken, left_out)
        return state, {**metrics, "step": state.step, "skipped": state.skipped}

    return step


def _examples(
    model: nn.Module, state: State, batch: Batch, augmentation: Augmentation, options: Labels, num_classes: int
) -> tuple[Forward, Array, Array]:
    """The network with the labels of a batch, its images and its keys."""
    step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    keys = example_keys(jax.random.fold_in(step_key, 1), batch["position"])

    def others(number: int) -> Array:
        """Other keys than the method's, which draws from the keys themselves."""
        return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)

    images = augment(step_key, batch["image"], augmentation, positions=batch["position"])
    labels = batch["label"]
    if options.soft:
        labels = smooth(labels, num_classes, options.smoothing)
    if options.mixes:
        other_images = augment(step_key, batch["other_image"], augmentation, positions=batch["other_position"])
        other_labels = smooth(batch["other_label"], num_classes, options.smoothing)
        images, labels = mix(others(3), images, labels, other_images, other_labels, options)
    weights = jnp.array(options.weights) if options.weights else None
    forward = Forward(model, state.params, state.batch_stats, labels, others(1), state.step, weights)
    return forward, images, keys


def _gradient(method: Method, forward: Forward, images: Array, keys: Array) -> tuple[Outcome, Tree]:
    """The outcome and the gradient of a method's objective on a batch."""
    images = method.inputs.make(forward, images, keys)
    weight = method.weight(forward.step) * method.every

    def objective(params: Tree) -> tuple[Array, Outcome]:
        terms = method.penalty.terms(forward._replace(params=params), images, keys)
        right = jnp.argmax(terms.aux.logits, axis=-1) == forward.classes
        loss, penalty = jnp.mean(terms.losses), jnp.mean(terms.penalties)
        accuracy = jnp.mean(right.astype(jnp.float32))
        return loss + weight * penalty, Outcome(loss, penalty, accuracy, terms.aux.batch_stats)

    gradients, outcome = jax.grad(objective, has_aux=True)(forward.params)
    return outcome, gradients


def _mean_over_parts(function: Callable[[Batch], T], batch: Batch, count: int) -> T:
    """The mean of a function over `count` equal parts of a batch, one after the other.

    A part takes every `count`-th example, so that each device's share of a batch is divided where it lies and the
    parts are the same ones on any number of devices.
    """
    if count == 1:
        return function(batch)
    parts: Any = jax.tree.map(lambda leaf: leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1), batch)
    zeros: Any = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], parts)),
    )
    total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None), zeros, parts)
    mean: T = jax.tree.map(lambda leaf: leaf / count, total)
    return mean
