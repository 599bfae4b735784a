"""Plain JAX: parameters in a dictionary, gradient descent by hand."""

import jax
import jax.numpy as jnp
from jax import Array

from deformreg import cross_entropy, evaluate, gradient_penalty
from deformreg.evaluation import suites

labels = jnp.arange(64) % 2  # a bright upper or lower half under noise
halves = jnp.where((jnp.arange(8) < 4)[None, :] == (labels == 0)[:, None], 0.7, 0.3)
images = halves[:, :, None, None] + 0.1 * jax.random.normal(jax.random.key(0), (64, 8, 8, 1))
params = {"in": 0.2 * jax.random.normal(jax.random.key(1), (64, 16)), "out": jnp.zeros((16, 2))}


def model(params: dict[str, Array], images: Array) -> Array:
    return jnp.tanh(images.reshape(len(images), -1) @ params["in"]) @ params["out"]


@jax.jit
def step(params: dict[str, Array]) -> tuple[dict[str, Array], Array]:
    def objective(params: dict[str, Array]) -> Array:
        penalties, losses = gradient_penalty(lambda images: cross_entropy(model(params, images), labels), images)
        return jnp.mean(losses) + jnp.mean(penalties)

    value, gradients = jax.value_and_grad(objective)(params)
    return jax.tree.map(lambda param, gradient: param - 0.2 * gradient, params, gradients), value


values = []
for _ in range(40):
    params, value = step(params)
    values.append(float(value))


@jax.jit
def logits_fn(images: Array) -> Array:
    return model(params, images)


evaluation = evaluate(logits_fn, images, labels, suites.quick(0.5), key=jax.random.key(2))
accuracy, robust = evaluation.clean_accuracy, evaluation.robust_accuracy
print(f"Plain JAX: objective {values[0]:.3f} -> {values[-1]:.3f}, accuracy {accuracy:.2f}, within 0.5 px {robust:.2f}")
