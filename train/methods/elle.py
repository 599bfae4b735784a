"""Local linearity (ELLE): the loss between two random points of the ball is close to its interpolation.

References:
    Abad Rocamora et al., "Efficient Local Linearity Regularization to Overcome Catastrophic Overfitting", ICLR 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
from jax import Array

import deformreg
from train.methods.families import Penalized, watched
from train.methods.inputs import attacked
from train.methods.method import CLEAN, STANDARD_PASSES, Forward, Method, Penalty, Terms, ramp
from train.ranges import HIDDEN, CountOrNone, NonNegative


@dataclass(frozen=True)
class Elle(Penalized):
    """The error of interpolating the loss between random points, from forward passes; with an attack of one step."""

    weight: NonNegative = 1000.0
    """Weight of the squared error."""
    steps: CountOrNone = 1
    """Gradient steps of the attack on the images that the loss is taken on; 0 for clean images."""
    name: Annotated[Literal["elle"], HIDDEN] = "elle"

    def make(self) -> Method:
        ball, family = deformreg.linf(self.bound), self.perturbation()
        attack = attacked(family, ball, num_steps=self.steps, step_size=None, statistics=self.statistics)
        inputs = attack if self.steps else CLEAN

        def terms(forward: Forward, images: Array, keys: Array) -> Terms:
            losses, aux = forward.train(inputs.make(forward, images, keys))
            penalties, _ = deformreg.penalties.local_linearity_penalty(
                lambda some: forward.losses(some, self.statistics),
                images,
                family,
                ball=ball,
                key=jax.vmap(jax.random.fold_in, (0, None))(keys, 2),  # attack and network draw from others
            )
            return Terms(losses, penalties, aux)

        # Three forward passes and their derivatives for the penalty. It drops the losses of the clean images.
        penalty = Penalty(terms, inputs.passes + 4 * STANDARD_PASSES)
        watch = watched(self.family, self.bound) if self.steps == 1 else None
        return Method(self.name, penalty=penalty, weight=ramp(self.weight, self.weight_ramp_steps), watch=watch)
