"""What a training carries from step to step."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

Tree = Any


class State(NamedTuple):
    """All that a training carries from step to step; its input continues at batch ``step + skipped``.

    Attributes:
        step: int32[], steps taken.
        skipped: int32[], batches left out because loss, gradient or parameters were not finite.
        params: the network's parameters.
        batch_stats: running statistics of batch normalization; empty with group normalization.
        opt_state: the optimizer's.
        key: uint32[2], the data of the run's random key, never changed.
    """

    step: Array
    skipped: Array
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    key: Array


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    seed: int,
) -> State:
    """The state before the first step.

    Args:
        model: the network.
        optimizer: an Optax transformation.
        image_shape: ``(h, w, c)`` of the augmented images.
        seed: of the parameters and of every random number of the training.
    """
    init_key, run_key = jax.random.split(jax.random.key(seed))
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, *image_shape)), train=False))(init_key)
    params = variables.get("params", {})
    return State(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        key=jax.random.key_data(run_key),
    )


def predict(model: nn.Module, params: Tree, batch_stats: Tree, images: Array) -> Array:
    """Logits on the running statistics."""
    logits = model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)
    return jnp.asarray(logits)
