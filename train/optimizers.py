"""Optimizers: one value a kind, one line in `AnyOptimizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import optax

from train.ranges import HIDDEN, Fraction, NonNegative, Positive


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with momentum."""

    learning_rate: Positive = 0.01
    """Peak learning rate."""
    momentum: Fraction = 0.9
    """Momentum, in [0, 1)."""
    nesterov: bool = False
    """Use Nesterov momentum."""
    weight_decay: NonNegative = 5e-4
    """Factor of the parameters that are added to their gradients before the momentum, as in PyTorch's SGD."""
    name: Annotated[Literal["sgd"], HIDDEN] = "sgd"

    def make(self, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(rate, momentum=self.momentum or None, nesterov=self.nesterov),
        )


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay."""

    learning_rate: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegative = 0.05
    """Every step shrinks every parameter by the learning rate times this fraction of it."""
    beta1: Fraction = 0.9
    """Decay of the gradient's mean, in [0, 1)."""
    beta2: Fraction = 0.999
    """Decay of the gradient's mean square, in [0, 1)."""
    name: Annotated[Literal["adamw"], HIDDEN] = "adamw"

    def make(self, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        return optax.adamw(rate, b1=self.beta1, b2=self.beta2, weight_decay=self.weight_decay)


AnyOptimizer = (
    Sgd  #
    | AdamW
)

OPTIMIZERS = {kind.name: kind for kind in get_args(AnyOptimizer)}
