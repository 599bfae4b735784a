"""Flax Linen with batch normalization: `has_aux` brings the new statistics out of the penalty's one forward pass."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from deformreg import cross_entropy, evaluate, gradient_penalty
from deformreg.evaluation import suites


class Net(nn.Module):
    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        hidden = nn.Conv(8, (3, 3))(images)
        hidden = nn.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.8)(hidden))
        return nn.Dense(2)(hidden.mean(axis=2).reshape(len(images), -1))


labels = jnp.arange(64) % 2  # a bright upper or lower half under noise
halves = jnp.where((jnp.arange(8) < 4)[None, :] == (labels == 0)[:, None], 0.7, 0.3)
images = halves[:, :, None, None] + 0.1 * jax.random.normal(jax.random.key(0), (64, 8, 8, 1))
net, optimizer = Net(), optax.adam(0.02)
variables = net.init(jax.random.key(1), images, train=True)
params, stats = variables["params"], variables["batch_stats"]
state = optimizer.init(params)


@jax.jit
def step(params: Any, stats: Any, state: Any) -> tuple[Any, Any, Any, Array]:
    def objective(params: Any) -> tuple[Array, Any]:
        def loss_fn(images: Array) -> tuple[Array, Any]:
            logits, new = net.apply(
                {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
            )
            return cross_entropy(logits, labels), new["batch_stats"]

        penalties, (losses, new_stats) = gradient_penalty(loss_fn, images, has_aux=True)
        return jnp.mean(losses) + jnp.mean(penalties), new_stats

    (value, stats), gradients = jax.value_and_grad(objective, has_aux=True)(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), stats, state, value


values = []
for _ in range(40):
    params, stats, state, value = step(params, stats, state)
    values.append(float(value))


@jax.jit
def logits_fn(images: Array) -> Array:
    return jnp.asarray(net.apply({"params": params, "batch_stats": stats}, images, train=False))


evaluation = evaluate(logits_fn, images, labels, suites.quick(0.5), key=jax.random.key(2))
accuracy, robust = evaluation.clean_accuracy, evaluation.robust_accuracy
print(f"Linen: objective {values[0]:.3f} -> {values[-1]:.3f}, accuracy {accuracy:.2f}, within 0.5 px {robust:.2f}")
