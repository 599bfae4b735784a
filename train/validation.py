"""Validation: the accuracy without an attack, after every epoch."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from train.data import Augmentation, Source, center_view, eval_batches
from train.parallel import Engine
from train.state import State, predict
from train.step import Batch


def count_right(model: nn.Module, state: State, batch: Batch, options: Augmentation) -> Array:
    """The numbers of correctly classified and of all valid examples of a batch, without an attack: ``int[2]``."""
    logits = predict(model, *state.evaluated, center_view(batch["image"], options))
    right = (jnp.argmax(logits, axis=-1) == batch["label"]) & batch["valid"]
    return jnp.stack([jnp.sum(right), jnp.sum(batch["valid"])])


_count_right = jax.jit(count_right, static_argnums=(0, 3))


def validate(model: nn.Module, state: State, source: Source, engine: Engine, options: Augmentation) -> float:
    """Clean accuracy on the readable images of a source; their batches are divided over the devices of all processes.

    Args:
        model: the network.
        state: of its training.
        source: the validation images.
        engine: what runs where.
        options: of the training's augmentation, whose image size is kept.
    """
    batches = eval_batches(
        source,
        batch_size=-(-min(len(source), 500) // engine.devices) * engine.devices,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    counts = [_count_right(model, state, engine.divide(batch), options) for batch in batches]
    right, examples = np.sum([np.asarray(count) for count in counts], axis=0)
    return float(right) / float(examples)
