"""Equinox: models take one example, so the loss function vmaps; channels come first inside it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from deformreg import cross_entropy, evaluate, gradient_penalty
from deformreg.evaluation import suites


class Net(eqx.Module):
    convolution: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self, key: Array) -> None:
        keys = jax.random.split(key)
        self.convolution = eqx.nn.Conv2d(1, 8, 3, padding=1, key=keys[0])
        self.head = eqx.nn.Linear(64, 2, key=keys[1])

    def __call__(self, image: Array) -> Array:
        hidden = jnp.tanh(self.convolution(jnp.moveaxis(image, -1, 0)))
        return self.head(hidden.mean(axis=2).ravel())


labels = jnp.arange(64) % 2  # a bright upper or lower half under noise
halves = jnp.where((jnp.arange(8) < 4)[None, :] == (labels == 0)[:, None], 0.7, 0.3)
images = halves[:, :, None, None] + 0.1 * jax.random.normal(jax.random.key(0), (64, 8, 8, 1))
net, optimizer = Net(jax.random.key(1)), optax.adam(0.02)
state = optimizer.init(eqx.filter(net, eqx.is_array))


@eqx.filter_jit
def step(net: Net, state: Any) -> tuple[Net, Any, Array]:
    def objective(net: Net) -> Array:
        penalties, losses = gradient_penalty(lambda images: cross_entropy(jax.vmap(net)(images), labels), images)
        return jnp.mean(losses) + jnp.mean(penalties)

    value, gradients = eqx.filter_value_and_grad(objective)(net)
    updates, state = optimizer.update(gradients, state)
    return eqx.apply_updates(net, updates), state, value


values = []
for _ in range(40):
    net, state, value = step(net, state)
    values.append(float(value))
logits_fn = jax.jit(jax.vmap(net))
evaluation = evaluate(logits_fn, images, labels, suites.quick(0.5), key=jax.random.key(2))
accuracy, robust = evaluation.clean_accuracy, evaluation.robust_accuracy
print(f"Equinox: objective {values[0]:.3f} -> {values[-1]:.3f}, accuracy {accuracy:.2f}, within 0.5 px {robust:.2f}")
