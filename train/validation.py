"""Validation: the accuracy without an attack, after every epoch."""

from __future__ import annotations

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from train.data import Augmentation, Source, center_view, eval_batches
from train.parallel import Engine
from train.state import State, predict
from train.step import Batch

MOST = 500
"""Largest number of images in a batch: more would only take memory."""


def count_right(model: nn.Module, state: State, batch: Batch, options: Augmentation) -> Array:
    """The numbers of correctly classified and of all valid examples of a batch, without an attack: ``int[2]``."""
    logits = predict(model, *state.evaluated, center_view(batch["image"], options))
    right = (jnp.argmax(logits, axis=-1) == batch["label"]) & batch["valid"]
    return jnp.stack([jnp.sum(right), jnp.sum(batch["valid"])])


_count_right = jax.jit(count_right, static_argnums=(0, 3))


def divided(source: Source, engine: Engine, at_once: int = MOST) -> Iterator[Batch]:
    """The examples of a source in order, in batches that are divided over the devices of all processes.

    Args:
        source: the examples.
        engine: what runs where.
        at_once: largest number of examples in a batch if it is less than `MOST`; rounded up to a multiple of the
            devices.
    """
    batches = eval_batches(
        source,
        batch_size=-(-min(len(source), MOST, at_once) // engine.devices) * engine.devices,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return map(engine.divide, batches)


def validate(
    model: nn.Module, state: State, source: Source, engine: Engine, options: Augmentation, *, at_once: int = MOST
) -> float:
    """Clean accuracy on the readable images of a source.

    Args:
        model: the network.
        state: of its training.
        source: the validation images.
        engine: what runs where.
        options: of the training's augmentation, whose image size is kept.
        at_once: images in a batch, as in `divided`: what a training step takes at once fits into memory here too.
    """
    counts = [_count_right(model, state, batch, options) for batch in divided(source, engine, at_once)]
    right, examples = np.sum([np.asarray(count) for count in counts], axis=0)
    return float(right) / float(examples)
