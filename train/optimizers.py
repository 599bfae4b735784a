"""Optimizers: one value a kind, one line in `AnyOptimizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import optax

from train.ranges import HIDDEN, Fraction, NonNegative, Positive


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with momentum."""

    name: Annotated[Literal["sgd"], HIDDEN] = "sgd"
    learning_rate: Positive = 0.01
    """Peak learning rate."""
    momentum: Fraction = 0.9
    """Momentum, in [0, 1)."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: NonNegative = 5e-4
    """Added to the gradient times the parameters, before the momentum, as PyTorch's SGD does; on every parameter."""

    def make(self, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(rate, momentum=self.momentum or None, nesterov=self.nesterov),
        )


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay."""

    name: Annotated[Literal["adamw"], HIDDEN] = "adamw"
    learning_rate: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegative = 0.05
    """Subtracted from every parameter, times the learning rate."""
    beta1: Fraction = 0.9
    """Decay of the gradient's mean, in [0, 1)."""
    beta2: Fraction = 0.999
    """Decay of the gradient's mean square, in [0, 1)."""

    def make(self, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        return optax.adamw(rate, b1=self.beta1, b2=self.beta2, weight_decay=self.weight_decay)


AnyOptimizer = (
    Sgd  #
    | AdamW
)

OPTIMIZERS = {kind.name: kind for kind in get_args(AnyOptimizer)}
