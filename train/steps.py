"""The training step of every method, as a pure function of state and batch.

``make_step(config, model, optimizer)`` returns ``step(state, batch, *, axis=None)``. Random numbers come from the
run's key, the step and an example's position in the global batch, so that a step does not depend on how the batch is
divided over devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

import deformreg
from deformreg.losses import cross_entropy
from deformreg.penalties import image_gradients, squared_norm
from deformreg.perturbations import Perturbation, pull_back
from train.config import Config, Method
from train.data.augmentation import augment, example_keys

Tree = Any


class State(NamedTuple):
    """All that a run carries from step to step; the input's position is the step.

    Attributes:
        step: int32[], steps taken.
        params: the network's parameters.
        batch_stats: running statistics of batch normalization; empty with group normalization.
        opt_state: the optimizer's.
        key: uint32[2], the data of the run's random key, never changed.
    """

    step: Array
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    key: Array


class Outcome(NamedTuple):
    """What a method's objective returns beside its value."""

    loss: Array
    penalty: Array
    accuracy: Array
    batch_stats: Tree


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    seed: int,
) -> State:
    """The state before the first step."""
    key = jax.random.key(seed)
    init_key, run_key = jax.random.split(key)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, *image_shape)), train=False))(init_key)
    params = variables["params"]
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        key=jax.random.key_data(run_key),
    )


def predict(model: nn.Module, params: Tree, batch_stats: Tree, images: Array) -> Array:
    """Logits on the running statistics."""
    return model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)


def make_step(
    config: Config, model: nn.Module, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[State, dict[str, Array]]]:
    """Builds the step of a config's method.

    Args:
        config: method, augmentation and the number of micro-batches.
        model: the network.
        optimizer: from `train.optimizers`.

    Returns:
        ``step(state, batch, *, axis=None) -> (state, metrics)``. A batch is ``{"image": uint8[n, h, w, c], "label":
        int32[n], "position": int32[n]}``, the latter the examples' places in the global batch. With `axis`, gradients,
        statistics and metrics are averaged over that mapped axis. Metrics are scalars: loss, penalty, accuracy and
        gradient_norm, of the whole batch, and the parameter_norm after the step.
    """
    method = config.method

    def step(state: State, batch: dict[str, Array], *, axis: str | None = None) -> tuple[State, dict[str, Array]]:
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

        def gradient(weight: float) -> tuple[Outcome, Tree]:
            def of_part(part: dict[str, Array]) -> tuple[Outcome, Tree]:
                keys = example_keys(jax.random.fold_in(step_key, 1), part["position"])
                images = augment(step_key, part["image"], config.augmentation, positions=part["position"])
                network = _Network(model, state.params, state.batch_stats, part["label"])
                if config.model.remat and _is_penalized(method, weight) and method.penalty == "exact":
                    return _gradient_along_tangent(method, network, images, keys, weight)

                def objective(params: Tree) -> tuple[Array, Outcome]:
                    outcome = _outcome(method, network._replace(params=params), images, keys, weight)
                    return outcome.loss + weight * outcome.penalty, outcome

                gradients, outcome = jax.grad(objective, has_aux=True)(state.params)
                return outcome, gradients

            return _mean_over_parts(of_part, batch, config.accumulate)

        if method.every > 1:
            outcome, gradients = jax.lax.cond(
                state.step % method.every == 0,
                lambda: gradient(method.weight * method.every),
                lambda: gradient(0.0),
            )
        else:
            outcome, gradients = gradient(method.weight)
        if axis is not None:
            outcome, gradients = jax.lax.pmean((outcome, gradients), axis)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": outcome.loss,
            "penalty": outcome.penalty,
            "accuracy": outcome.accuracy,
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
        }
        return State(state.step + 1, params, outcome.batch_stats, opt_state, state.key), metrics

    return step


def _mean_over_parts(function: Callable[[dict[str, Array]], Tree], batch: dict[str, Array], count: int) -> Tree:
    """The mean of a function over `count` equal parts of a batch, one after the other.

    A part takes every `count`-th example, so that each device's share of a batch is divided where it lies and the
    parts are the same ones on any number of devices.
    """
    if count == 1:
        return function(batch)
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1), batch)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], parts)),
    )
    total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None), zeros, parts)
    return jax.tree.map(lambda leaf: leaf / count, total)


class _Network(NamedTuple):
    """A network at fixed parameters, with the labels of its batch."""

    model: nn.Module
    params: Tree
    batch_stats: Tree
    labels: Array

    def on_batch(self, images: Array) -> tuple[Array, tuple[Array, Tree]]:
        """Losses on batch statistics, with logits and the updated running statistics."""
        variables = {"params": self.params, "batch_stats": self.batch_stats}
        logits, updated = self.model.apply(variables, images, train=True, mutable=["batch_stats"])
        return cross_entropy(logits, self.labels), (logits, updated.get("batch_stats", {}))

    def on_running(self, images: Array) -> Array:
        """Losses on running statistics: every example for itself."""
        return cross_entropy(predict(self.model, self.params, self.batch_stats, images), self.labels)

    def losses(self, method: Method) -> Callable[[Array], Array]:
        """Losses on the statistics that a method's penalties and attacks see; never updates them."""
        return self.on_running if method.statistics == "running" else lambda images: self.on_batch(images)[0]

    def logits(self, method: Method) -> Callable[[Array], Array]:
        """Logits on those statistics."""
        if method.statistics == "running":
            return lambda images: predict(self.model, self.params, self.batch_stats, images)
        return lambda images: self.on_batch(images)[1][0]


def _is_penalized(method: Method, weight: float) -> bool:
    return weight != 0 and "gradient" in method.name


def _outcome(method: Method, network: _Network, images: Array, keys: Array, weight: float) -> Outcome:
    """Clean loss and penalty of a method, from as few passes through the network as it takes."""
    images = _training_images(method, network, images, keys)
    if not _is_penalized(method, weight):
        losses, (logits, batch_stats) = network.on_batch(images)
        penalties = jnp.zeros_like(losses)
    elif method.statistics == "batch":
        penalties, (losses, (logits, batch_stats)) = _penalty(method, network.on_batch, images, has_aux=True)
    else:
        losses, (logits, batch_stats) = network.on_batch(images)
        penalties, _ = _penalty(method, network.on_running, images, has_aux=False)
    return _summary(network, losses, penalties, logits, batch_stats)


def _summary(network: _Network, losses: Array, penalties: Array, logits: Array, batch_stats: Tree) -> Outcome:
    right = jnp.argmax(logits, axis=-1) == network.labels
    return Outcome(jnp.mean(losses), jnp.mean(penalties), jnp.mean(right.astype(jnp.float32)), batch_stats)


def _gradient_along_tangent(
    method: Method, network: _Network, images: Array, keys: Array, weight: float
) -> tuple[Outcome, Tree]:
    """What `_outcome` and its gradient are for the exact penalty, by forward-over-reverse differentiation.

    With ``g`` the images' gradients and ``P`` the pullback, the gradient of ``mean |P g|^2`` with respect to the
    parameters is the derivative of the mean loss's gradient as the images move along ``2 P' P g``. That takes twice
    the memory of a standard step, with everything rematerialized that a standard step rematerializes; reverse over
    reverse keeps what the inner backward pass computes, rematerialized or not. It costs a third more arithmetic.
    """
    images = _training_images(method, network, images, keys)
    gradients, _ = image_gradients(network.losses(method), images)
    penalties, pull = jax.vjp(lambda leaf: squared_norm(pull_back(_family(method), leaf, images)), gradients)
    (direction,) = pull(jnp.full_like(penalties, weight))

    def gradient(images: Array, losses_of: Callable[[_Network, Array], Any]) -> tuple[Tree, Any]:
        def mean_loss(params: Tree) -> tuple[Array, Any]:
            losses, aux = losses_of(network._replace(params=params), images)
            return jnp.mean(losses), (losses, aux)

        return jax.grad(mean_loss, has_aux=True)(network.params)

    def on_batch(images: Array) -> tuple[Tree, Any]:
        return gradient(images, _Network.on_batch)

    def on_running(images: Array) -> Tree:
        return gradient(images, lambda network, images: (network.on_running(images), ()))[0]

    if method.statistics == "batch":
        clean, tangent, (losses, aux) = jax.jvp(on_batch, (images,), (direction,), has_aux=True)
    else:
        clean, (losses, aux) = on_batch(images)
        _, tangent = jax.jvp(on_running, (images,), (direction,))
    return _summary(network, losses, penalties, *aux), jax.tree.map(jnp.add, clean, tangent)


def _family(method: Method) -> Perturbation:
    return deformreg.additive() if method.name == "input-gradient" else deformreg.flow()


def _penalty(method: Method, loss_fn: Callable[[Array], Any], images: Array, *, has_aux: bool) -> tuple[Array, Any]:
    family = _family(method)
    if method.penalty == "exact":
        return deformreg.gradient_penalty(loss_fn, images, family, has_aux=has_aux)
    return deformreg.finite_difference_penalty(loss_fn, images, family, step_size=method.difference, has_aux=has_aux)


def _training_images(method: Method, network: _Network, images: Array, keys: Array) -> Array:
    """The images that a method trains on: clean, randomly deformed, or attacked."""
    if method.name == "spatial":
        return _worst_rotated(method, network, images, keys)
    if method.radius and method.name in ("adversarial", "deformation", "flow-gradient+deformation"):
        images = _attacked(method, network, images, keys)
    if method.random_start:
        images = jax.vmap(lambda key, image: deformreg.random_start(key, image[None], noise=method.random_start)[0])(
            keys, images
        )
    return images


def _attacked(method: Method, network: _Network, images: Array, keys: Array) -> Array:
    ball = deformreg.linf(method.radius)

    def draw(_: Array, params: Array) -> Array:
        return jax.vmap(lambda key, leaf: ball.sample(key, leaf[None])[0])(keys, params)

    if method.name == "adversarial":
        family = deformreg.additive(image_range=(0.0, 1.0))
    else:
        family = deformreg.flow(within=method.radius)
    fixed = network._replace(params=jax.lax.stop_gradient(network.params))
    return deformreg.multi_step(
        fixed.losses(method),
        images,
        ball=ball,
        perturbation=family,
        num_steps=method.steps,
        step_size=method.step_size or 2.5 * method.radius / method.steps,
        start=draw,
        key=keys[0],
    ).images


def _worst_rotated(method: Method, network: _Network, images: Array, keys: Array) -> Array:
    """Of random rotations with translations, drawn for each example by itself, the misclassified or costliest one."""
    attack = deformreg.attacks.rotation_translation(
        max_degrees=method.degrees, max_pixels=method.radius, grid=None, num_draws=method.draws, keep="best"
    )
    fixed = network._replace(params=jax.lax.stop_gradient(network.params))
    result = attack.run(fixed.logits(method), images, network.labels, keys)
    return jax.lax.stop_gradient(attack.perturbation.apply(result.params, images))
