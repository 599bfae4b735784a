"""Haiku: the transformed apply function closes over its parameters inside the loss function."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from jax import Array

from deformreg import cross_entropy, evaluate, gradient_penalty
from deformreg.evaluation import suites

labels = jnp.arange(64) % 2  # a bright upper or lower half under noise
halves = jnp.where((jnp.arange(8) < 4)[None, :] == (labels == 0)[:, None], 0.7, 0.3)
images = halves[:, :, None, None] + 0.1 * jax.random.normal(jax.random.key(0), (64, 8, 8, 1))


def forward(images: Array) -> Array:
    hidden = jnp.tanh(hk.Conv2D(8, 3)(images))
    return hk.Linear(2)(hidden.mean(axis=2).reshape(len(images), -1))


net: Any = hk.without_apply_rng(hk.transform(forward))
optimizer = optax.adam(0.02)
params = net.init(jax.random.key(1), images)
state = optimizer.init(params)


@jax.jit
def step(params: Any, state: Any) -> tuple[Any, Any, Array]:
    def objective(params: Any) -> Array:
        penalties, losses = gradient_penalty(lambda images: cross_entropy(net.apply(params, images), labels), images)
        return jnp.mean(losses) + jnp.mean(penalties)

    value, gradients = jax.value_and_grad(objective)(params)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, value


values = []
for _ in range(40):
    params, state, value = step(params, state)
    values.append(float(value))


@jax.jit
def logits_fn(images: Array) -> Array:
    return jnp.asarray(net.apply(params, images))


evaluation = evaluate(logits_fn, images, labels, suites.quick(0.5), key=jax.random.key(2))
accuracy, robust = evaluation.clean_accuracy, evaluation.robust_accuracy
print(f"Haiku: objective {values[0]:.3f} -> {values[-1]:.3f}, accuracy {accuracy:.2f}, within 0.5 px {robust:.2f}")
