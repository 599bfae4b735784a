"""Images per second of the multi-step attack."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from deformreg.losses import cross_entropy
from train.models import create_model


def loss_function(name: str, batch_size: int, image_shape: tuple[int, int, int] = (32, 32, 3)) -> Callable[..., Array]:
    """Losses ``images[n, h, w, c] -> [n]`` of an untrained network in inference, for one batch of labels."""
    model = create_model(name, num_classes=10)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, *image_shape))))(jax.random.key(0))
    labels = jnp.arange(batch_size) % 10
    return lambda images: cross_entropy(model.apply(variables, images), labels)
