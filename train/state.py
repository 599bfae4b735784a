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
        average: moving averages of `params` and `batch_stats`; None if none are kept.
    """

    step: Array
    skipped: Array
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    key: Array
    average: tuple[Tree, Tree] | None = None

    @property
    def evaluated(self) -> tuple[Tree, Tree]:
        """The parameters and running statistics to evaluate: the averages if they are kept."""
        return (self.params, self.batch_stats) if self.average is None else self.average


def averaged(average: tuple[Tree, Tree], new: tuple[Tree, Tree], step: Array, decay: float) -> tuple[Tree, Tree]:
    """The exponential moving average after a step.

    The decay is at most ``(1 + step) / (10 + step)``: the average forgets the random parameters of the start early.
    """
    share = jnp.minimum(decay, (1 + step) / (10 + step))
    result: tuple[Tree, Tree] = jax.tree.map(lambda old, leaf: old + (1 - share) * (leaf - old), average, new)
    return result


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    seed: int,
    *,
    average: bool = False,
) -> State:
    """The state before the first step.

    Args:
        model: the network.
        optimizer: an Optax transformation.
        image_shape: ``(h, w, c)`` of the augmented images.
        seed: of the parameters and of every random number of the training.
        average: whether moving averages of the weights are kept.
    """
    init_key, run_key = jax.random.split(jax.random.key(seed))
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, *image_shape)), train=False))(init_key)
    params, batch_stats = variables.get("params", {}), variables.get("batch_stats", {})
    return State(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        key=jax.random.key_data(run_key),
        # Copies: a step donates the buffers of the state, and none may be donated twice.
        average=jax.tree.map(jnp.copy, (params, batch_stats)) if average else None,
    )


def predict(model: nn.Module, params: Tree, batch_stats: Tree, images: Array) -> Array:
    """Logits on the running statistics."""
    logits = model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)
    return jnp.asarray(logits)
