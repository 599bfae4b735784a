"""Segmentation: a small network finds shapes; does it keep their outlines when pixels move by up to half a pixel?"""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.tree_util import Partial

from deformreg import criteria, evaluate, gradient_penalty, linf
from deformreg.attacks import pgd
from deformreg.evaluation import reports, suites

SIZE, COUNT = 16, 64

# A bright disc and a dark square on grey, under noise; classes: background, disc, square.
keys = jax.random.split(jax.random.key(0), 3)
centres = jax.random.uniform(keys[0], (COUNT, 2, 2), minval=4.0, maxval=SIZE - 5.0)[:, :, None, None, :]
rows, columns = jnp.meshgrid(jnp.arange(SIZE), jnp.arange(SIZE), indexing="ij")
distances = jnp.abs(jnp.stack([rows, columns], axis=-1) - centres)  # [n, shape, h, w, axis]
disc, square = jnp.sum(distances[:, 0] ** 2, axis=-1) < 14, jnp.max(distances[:, 1], axis=-1) < 3.5
label_maps = jnp.where(disc, 1, jnp.where(square, 2, 0))
brightness = jnp.array([0.5, 0.8, 0.2])[label_maps]
images = (brightness + 0.1 * jax.random.normal(keys[1], brightness.shape))[..., None]


def convolve(images: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def model(kernels: list[Array], images: Array) -> Array:
    """``images[n, h, w, 1] -> logits[n, h, w, 3]``."""
    features = images - 0.5
    for kernel in kernels[:-1]:
        features = jax.nn.softplus(convolve(features, kernel))
    return convolve(features, kernels[-1])


right = criteria.segmentation(0.9, warp_labels=True)  # 90 % of the pixels, of the outlines where they now are
widths = (1, 8, 8, 3)
kernels = [
    jax.random.normal(key, (3, 3, fan_in, fan_out)) * (9 * fan_in) ** -0.5
    for key, fan_in, fan_out in zip(jax.random.split(keys[2], 3), widths, widths[1:], strict=False)
]
optimizer = optax.adam(0.03)


@jax.jit
def step(kernels: list[Array], state: optax.OptState) -> tuple[list[Array], optax.OptState, Array]:
    def objective(kernels: list[Array]) -> Array:
        penalties, losses = gradient_penalty(lambda x: right.loss(model(kernels, x), label_maps), images)
        return jnp.mean(losses) + 10.0 * jnp.mean(penalties)

    value, gradients = jax.value_and_grad(objective)(kernels)
    updates, state = optimizer.update(gradients, state)
    return [kernel + update for kernel, update in zip(kernels, updates, strict=True)], state, value


state, values = optimizer.init(kernels), []
for _ in range(150):
    kernels, state, value = step(kernels, state)
    values.append(float(value))

trained, key = Partial(model, kernels), jax.random.key(1)
attack = pgd(ball=linf(0.5), num_steps=10, keep="any")
attacked = jax.jit(lambda key: attack.run(trained, images, label_maps, key, criterion=right))(key)
moved = float(jnp.mean(attacked.labels[attacked.success] != label_maps[attacked.success]))
print(f"Segmentation: objective {values[0]:.3f} -> {values[-1]:.3f}, {moved:.1%} of the labels moved along")

attacks = suites.quick.suited_to(right)(0.5)
evaluation = evaluate(trained, images, label_maps, attacks, key=key, criterion=right, batch_size=32)
accuracy, robust = evaluation.clean_accuracy, evaluation.robust_accuracy
print(reports.to_markdown(evaluation))
