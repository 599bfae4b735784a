"""Flax NNX: the module is the argument that is differentiated; the penalty needs a function of images, no more."""

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
        self.head = nnx.Linear(64, 2, rngs=rngs)

    def __call__(self, images: Array) -> Array:
        return self.head(nnx.tanh(self.convolution(images)).mean(axis=2).reshape(len(images), -1))


labels = jnp.arange(64) % 2  # a bright upper or lower half under noise
halves = jnp.where((jnp.arange(8) < 4)[None, :] == (labels == 0)[:, None], 0.7, 0.3)
images = halves[:, :, None, None] + 0.1 * jax.random.normal(jax.random.key(0), (64, 8, 8, 1))
net = Net(nnx.Rngs(1))
optimizer = nnx.Optimizer(net, optax.adam(0.02), wrt=nnx.Param)


@nnx.jit
def step(net: Net, optimizer: nnx.Optimizer[Net]) -> Array:
    def objective(net: Net) -> Array:
        penalties, losses = gradient_penalty(lambda images: cross_entropy(net(images), labels), images)
        return jnp.mean(losses) + jnp.mean(penalties)

    value, gradients = nnx.value_and_grad(objective)(net)
    optimizer.update(net, gradients)
    return jnp.asarray(value)


values = [float(step(net, optimizer)) for _ in range(40)]
evaluation = evaluate(lambda images: net(images), images, labels, suites.quick(0.5), key=jax.random.key(2))
accuracy, robust = evaluation.clean_accuracy, evaluation.robust_accuracy
print(f"NNX: objective {values[0]:.3f} -> {values[-1]:.3f}, accuracy {accuracy:.2f}, within 0.5 px {robust:.2f}")
