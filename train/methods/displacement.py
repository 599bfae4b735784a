"""The displacement penalty: how much the loss rises if every pixel moves to its worse side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from jax import Array

from deformreg.penalties import LossFn, displacement_penalty
from train.methods.method import Method, ramp
from train.methods.penalties import penalty_of
from train.ranges import HIDDEN, CountOrNone, PenaltyStatistics, Positive


@dataclass(frozen=True)
class Displacement:
    """The squared first-order increase of the loss under displacements of every pixel, exact in the warp."""

    weight: Positive = 10.0
    """Weight of the mean penalty, per nat."""
    radius: Positive = 0.155
    """Largest displacement, in pixels per flow component."""
    weight_ramp_steps: CountOrNone = 0
    """Steps over which the weight grows linearly from 0; 0 for the whole weight from the start."""
    statistics: PenaltyStatistics = "batch"
    """Batch-normalization statistics of the penalty: as in flow-gradient."""
    name: Annotated[Literal["displacement"], HIDDEN] = "displacement"

    def make(self) -> Method:
        def penalize(loss_fn: LossFn, images: Array, keys: Array, *, has_aux: bool = False) -> tuple[Array, Any]:
            return displacement_penalty(loss_fn, images, self.radius, has_aux=has_aux)

        penalty = penalty_of(penalize, 6.0, statistics=self.statistics)
        return Method(self.name, penalty=penalty, weight=ramp(self.weight, self.weight_ramp_steps))
