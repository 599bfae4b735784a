"""Catastrophic overfitting: a network that resists the attack it was trained on, and loses to one of more steps.

It begins within an epoch, while loss and clean accuracy look well. Only the accuracy under more steps shows it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from train import processes
from train.data import Augmentation, Source, center_view, example_keys, subset
from train.data.sample import sample
from train.methods import Forward, Inputs
from train.parallel import Engine
from train.state import State, predict
from train.step import Batch
from train.task import Network
from train.validation import divided

_EXAMPLES = 500
_FALL = 0.5
"""Share of the best accuracy so far below which an accuracy is reported."""


def attacked_accuracy(
    watch: Inputs, network: Network, state: State, batch: Batch, options: Augmentation, first: Array | int = 0
) -> Array:
    """The numbers of examples that are right under an attack, and of all valid ones: ``int[2]``.

    The random numbers of an example come from its place among all, the first of the batch being number `first`.
    """
    keys = example_keys(jax.random.key(0), first + jnp.arange(len(batch["label"])))
    forward = Forward(network.model, *state.evaluated, batch["label"], keys, state.step)
    images = watch.make(forward, center_view(batch["image"], options), keys)
    logits = predict(network.model, *state.evaluated, images)
    right = (jnp.argmax(logits, axis=-1) == batch["label"]) & batch["valid"]
    return jnp.stack([jnp.sum(right), jnp.sum(batch["valid"])])


def detector(
    watch: Inputs | None,
    network: Network,
    source: Source,
    engine: Engine,
    options: Augmentation,
    *,
    at_once: int = _EXAMPLES,
    before: Sequence[float] = (),
) -> Callable[[State], dict[str, float]]:
    """Makes a function that measures the accuracy under a method's `watch` attack, and says when it falls.

    Args:
        watch: the attack, of more steps than the training's; with None nothing is measured.
        network: what is trained.
        source: validation images; a sample of 500 is used, every class in its proportion.
        engine: what runs where.
        options: of the training's augmentation.
        at_once: images in a batch, as in `train.validation.validate`.
        before: the accuracies of earlier epochs.

    Returns:
        A function from the state to ``{"attacked_accuracy": ...}``, or to nothing. It prints a line if the accuracy
        is less than half of the best so far.
    """
    if watch is None:
        return lambda state: {}
    batches = list(divided(subset(source, np.sort(sample(source, _EXAMPLES)), source.name), engine, at_once))
    count = jax.jit(lambda state, batch, first: attacked_accuracy(watch, network, state, batch, options, first))
    accuracies = [0.0, *before]

    def measure(state: State) -> dict[str, float]:
        counts = [count(state, batch, at * len(batch["label"])) for at, batch in enumerate(batches)]
        right, examples = np.sum([np.asarray(each) for each in counts], axis=0)
        accuracy, best = float(right) / max(float(examples), 1.0), max(accuracies)
        accuracies.append(accuracy)
        if accuracy < _FALL * best and processes.is_lead():
            print(
                f"catastrophic overfitting: the accuracy under an attack of more steps fell from {best:.1%} to "
                f"{accuracy:.1%}. Train with --method n-fgsm or elle, with --method deformation or adversarial "
                "(7 steps), or with a smaller --method.radius",
                file=sys.stderr,
            )
        return {"attacked_accuracy": accuracy}

    return measure
