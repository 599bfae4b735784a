"""Any JAX function from images to logits can be evaluated: here a classifier of plain arrays, trained on the spot."""

import jax
import jax.numpy as jnp
from jax import Array

import deformreg


def logits_fn(weights: Array, images: Array) -> Array:
    return images.reshape(len(images), -1) @ weights


def loss(weights: Array, images: Array, labels: Array) -> Array:
    return deformreg.cross_entropy(logits_fn(weights, images), labels).mean()


# Blurred spots, left or right of the middle.
labels = jnp.arange(256) % 2
place = jnp.where(labels == 1, 8.0, 5.0)[:, None] + jax.random.normal(jax.random.key(0), (256, 2)) * jnp.array(
    [2.0, 0.5]
)
rows, columns = jnp.meshgrid(jnp.arange(14.0), jnp.arange(14.0), indexing="ij")
images = jnp.exp(-((rows - place[:, :1, None]) ** 2 + (columns - place[:, 1:, None]) ** 2) / 8)[..., None]
weights = jnp.zeros((14 * 14, 2))
for _ in range(100):
    weights -= jax.grad(loss)(weights, images, labels)

model = jax.tree_util.Partial(logits_fn, weights)
suite = deformreg.evaluation.suites.standard(1.0)
result = deformreg.evaluate(model, images, labels, suite, batch_size=32, key=jax.random.key(1))
print(deformreg.evaluation.reports.to_markdown(result))
