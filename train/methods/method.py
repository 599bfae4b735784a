"""A training method as a value of pure functions.

A method says which images a step trains on, what it adds to their loss, with which weight and how often. The training
step is built from that value. A new method is a new value, in a file of this folder or in your own script::

    penalty = gradient_penalty(deformreg.flow(), Exact())
    mine = Method("mine", noisy(0.2), penalty, weight=optax.constant_schedule(4.0))

The objective of a step is ``mean(losses) + weight(step) * every * mean(penalties)`` on every `every`-th step from
`first_step` on, and ``mean(losses)`` on the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from deformreg import cross_entropy
from train.ranges import Statistics
from train.state import predict

Tree = Any

STANDARD_PASSES = 3.0
"""Cost of a standard step in forward passes: forward, backward to the activations, weight gradients."""


class Aux(NamedTuple):
    """What a training pass returns besides the losses.

    Attributes:
        logits: float[n, classes].
        batch_stats: the updated running statistics of batch normalization.
    """

    logits: Array
    batch_stats: Tree


class Forward(NamedTuple):
    """The network with its current parameters and the labels of the batch.

    Attributes:
        model: the Flax module.
        params: its parameters.
        batch_stats: its running statistics.
        labels: int[n], or float[n, classes] where they are soft.
        keys: one random key per example, for dropout and stochastic depth. All passes of a step see the same ones.
        step: int32[], steps taken before this one.
        weights: float[classes], of each class in the losses; None for equal weights.
    """

    model: nn.Module
    params: Tree
    batch_stats: Tree
    labels: Array
    keys: Array
    step: Array | int = 0
    weights: Array | None = None

    @property
    def classes(self) -> Array:
        """int[n], the labels, or the likeliest class of soft ones."""
        return self.labels if self.labels.ndim == 1 else jnp.argmax(self.labels, axis=1)

    def train(self, images: Array) -> tuple[Array, Aux]:
        """Losses with batch statistics; also the logits and the updated running statistics."""
        variables = {"params": self.params, "batch_stats": self.batch_stats}
        # Flax's own dropout draws for a whole batch from one key.
        random = {"keys": self.keys} if takes_keys(self.model) else {"rngs": {"dropout": self.keys[0]}}
        logits, updated = self.model.apply(variables, images, train=True, mutable=["batch_stats"], **random)
        return self._losses(logits), Aux(logits, updated.get("batch_stats", {}))

    def logits(self, images: Array, statistics: Statistics) -> Array:
        """Logits on `statistics`, for penalties and attacks; the running statistics are not updated."""
        if statistics == "batch":
            return self.train(images)[1].logits
        return predict(self.model, self.params, self.batch_stats, images)

    def losses(self, images: Array, statistics: Statistics) -> Array:
        """Losses on `statistics`, for penalties and attacks; the running statistics are not updated."""
        return self._losses(self.logits(images, statistics))

    def _losses(self, logits: Array) -> Array:
        return self.weighted(cross_entropy(logits, self.labels))

    def weighted(self, losses: Array) -> Array:
        """The losses of the examples, each times the weight of its class."""
        if self.weights is None:
            return losses
        hot = self.labels if self.labels.ndim == 2 else jax.nn.one_hot(self.labels, len(self.weights))
        return losses * (hot @ self.weights)

    def part(self, rows: slice) -> Forward:
        """The same network, for some rows of the batch: with their labels and keys."""
        return self._replace(labels=self.labels[rows], keys=self.keys[rows])

    def fixed(self) -> Forward:
        """The same network with parameters that are not differentiated."""
        return self._replace(params=jax.lax.stop_gradient(self.params))


def takes_keys(module: nn.Module) -> bool:
    """Whether a module's call takes ``keys``, one per example."""
    return "keys" in inspect.signature(module.__call__).parameters


class Inputs(NamedTuple):
    """Which images a step trains on.

    Attributes:
        make: ``(forward, images, keys) -> images``; `images` are augmented and in [0, 1], `keys` holds one random key
            per example. Draw the random numbers of each example from its own key, so that a step does not depend on how
            the batch is divided over devices.
        passes: cost in forward passes.
    """

    make: Callable[[Forward, Array, Array], Array]
    passes: float = 0.0


class Terms(NamedTuple):
    """The parts of an objective.

    Attributes:
        losses: float[n], of the images that a step trains on.
        penalties: float[m], whose weighted mean is added to the mean of `losses`.
        aux: from the training pass.
    """

    losses: Array
    penalties: Array
    aux: Aux


class Penalty(NamedTuple):
    """What a method adds to the loss.

    Attributes:
        terms: ``(forward, images, keys) -> Terms``: losses and penalties, from as few passes as possible.
        passes: cost of a step with this penalty in forward passes, including the cost of the loss.
    """

    terms: Callable[[Forward, Array, Array], Terms]
    passes: float


def ramp(peak: float, steps: int, *, first_step: int = 0) -> optax.Schedule:
    """A schedule that grows linearly from 0 to `peak` over some steps from a first one; with 0 steps it is constant."""
    if not steps:
        return optax.constant_schedule(peak)
    return optax.linear_schedule(0.0, peak, steps, transition_begin=first_step)


CLEAN = Inputs(lambda forward, images, keys: images)
"""The augmented images as they are."""


def _no_penalty(forward: Forward, images: Array, keys: Array) -> Terms:
    losses, aux = forward.train(images)
    return Terms(losses, jnp.zeros_like(losses), aux)


NO_PENALTY = Penalty(_no_penalty, STANDARD_PASSES)
"""The loss alone."""


class Method(NamedTuple):
    """A training method.

    Attributes:
        name: for logs and reports.
        inputs: which images a step trains on.
        penalty: what is added to their loss.
        weight: of the mean penalty, as a function of the step.
        every: k: the penalty is taken on every k-th step, with k times the weight.
        first_step: the first step with the penalty.
        watch: attacked images on which the accuracy is measured after every epoch, on validation images: of a stronger
            attack than the training's, which shows when the training has learnt to resist its own attack only.
    """

    name: str
    inputs: Inputs = CLEAN
    penalty: Penalty = NO_PENALTY
    weight: optax.Schedule = optax.constant_schedule(1.0)
    every: int = 1
    first_step: int = 0
    watch: Inputs | None = None

    def is_due(self, step: Any) -> Any:
        """Whether a step takes the penalty: of an int, or of an array in the step."""
        return (step % self.every == 0) & (step >= self.first_step)

    @property
    def passes(self) -> float:
        """Mean cost of a step in forward passes from `first_step` on, over `every` steps; a standard step costs 3."""
        return self.inputs.passes + (self.penalty.passes + STANDARD_PASSES * (self.every - 1)) / self.every

    def mean_passes(self, num_steps: int) -> float:
        """Mean cost of a step in forward passes, over a training of `num_steps` steps."""
        before = min(self.first_step, num_steps) / num_steps
        return before * (self.inputs.passes + STANDARD_PASSES) + (1 - before) * self.passes
