"""Flax NNX with batch norm and dropout: their state changes only outside the penalty, and never in an attack."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from deformreg import cross_entropy, evaluate, gradient_penalty
from deformreg.evaluation import suites


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.convolution = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(64, 2, rngs=rngs)

    def __call__(self, images: Array) -> Array:
        rows = nnx.tanh(self.norm(self.convolution(images))).mean(axis=2)
        return self.head(self.dropout(rows.reshape(len(images), -1)))


labels = jnp.arange(64) % 2  # a bright upper or lower half under noise
halves = jnp.where((jnp.arange(8) < 4)[None, :] == (labels == 0)[:, None], 0.7, 0.3)
images = halves[:, :, None, None] + 0.1 * jax.random.normal(jax.random.key(0), (64, 8, 8, 1))
net = Net(nnx.Rngs(1))
optimizer = nnx.Optimizer(net, optax.adam(0.02), wrt=nnx.Param)


@nnx.jit
def step(net: Net, optimizer: nnx.Optimizer[Net]) -> Array:
    graph, *parts = nnx.split(net, nnx.Param, ...)
    params, state = parts

    def objective(params: Any) -> tuple[Array, Any]:
        def loss_fn(images: Array) -> tuple[Array, Any]:
            inside = nnx.merge(graph, params, state, copy=True)
            losses = cross_entropy(inside(images), labels)
            return losses, nnx.state(inside, nnx.Not(nnx.Param))

        penalties, (losses, new_state) = gradient_penalty(loss_fn, images, has_aux=True)
        return jnp.mean(losses) + jnp.mean(penalties), new_state

    (value, new_state), gradients = jax.value_and_grad(objective, has_aux=True)(params)
    optimizer.update(net, gradients)
    nnx.update(net, new_state)
    return jnp.asarray(value)


net.train()  # type: ignore[no-untyped-call]
values = [float(step(net, optimizer)) for _ in range(60)]
net.eval()  # type: ignore[no-untyped-call]
evaluation = evaluate(lambda images: net(images), images, labels, suites.quick(0.5), key=jax.random.key(2))
accuracy, robust = evaluation.clean_accuracy, evaluation.robust_accuracy
print(f"NNX: objective {values[0]:.3f} -> {values[-1]:.3f}, accuracy {accuracy:.2f}, within 0.5 px {robust:.2f}")
