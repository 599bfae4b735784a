"""Local linearity regularization (LLR): the loss is close to its linearization at the worst point of the ball.

References:
    Qin et al., "Adversarial Robustness through Local Linearization", NeurIPS 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from jax import Array

import deformreg
from deformreg.penalties import LossFn
from train.methods.families import Penalized
from train.methods.method import STANDARD_PASSES, Method, ramp
from train.methods.penalties import penalty_of
from train.ranges import HIDDEN, NonNegative, Steps


@dataclass(frozen=True)
class Llr(Penalized):
    """The error of the loss's linearization at the worst point of the ball, plus its slope there."""

    weight: NonNegative = 4.0
    """Weight of error and slope."""
    slope_weight: NonNegative = 0.3
    """Weight of the slope, times `weight`."""
    steps: Steps = 10
    """Gradient steps of the search for the worst point."""
    name: Annotated[Literal["llr"], HIDDEN] = "llr"

    def make(self) -> Method:
        measure = partial(
            deformreg.penalties.linearization_penalty,
            perturbation=self.perturbation(),
            ball=deformreg.linf(self.bound),
            num_steps=self.steps,
            slope_weight=self.slope_weight,
        )

        def penalize(loss_fn: LossFn, images: Array, keys: Array, *, has_aux: bool = False) -> tuple[Array, Any]:
            return measure(loss_fn, images, key=keys, has_aux=has_aux)

        # The exact gradient penalty, the loss at the worst point, and the search.
        passes = 6.0 + STANDARD_PASSES + 2.0 * self.steps
        penalty = penalty_of(penalize, passes, statistics=self.statistics)
        return Method(self.name, penalty=penalty, weight=ramp(self.weight, self.weight_ramp_steps))
