"""The squared gradients of the loss with respect to a flow, to pixel values and to affine maps, summed.

The three are pullbacks of one image gradient, so together they cost what one of them costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from jax import Array

import deformreg
from deformreg.penalties import LossFn
from train.errors import ConfigError
from train.methods.method import Method, ramp
from train.methods.penalties import Exact, penalty_of
from train.ranges import HIDDEN, CountOrNone, NonNegative, PenaltyStatistics

FAMILIES = {"flow": deformreg.flow(), "pixels": deformreg.additive(), "affine": deformreg.affine()}
"""The families by the names of their weights."""


@dataclass(frozen=True)
class Gradients:
    """Squared gradients of the loss with respect to a flow, to the pixels and to affine maps, at the cost of one."""

    flow: NonNegative = 1.0
    """Weight of the flow's mean penalty, in pixels squared per nat; 0 leaves the flow out."""
    pixels: NonNegative = 0.1
    """Weight of the pixels' mean penalty, in image units squared per nat; 0 leaves them out."""
    affine: NonNegative = 0.0
    """Weight of the mean penalty of a rotation (radians) and a translation (pixels) of the whole image; 0 for none."""
    weight_ramp_steps: CountOrNone = 0
    """Steps over which the weights grow linearly from 0; 0 for the whole weights from the start."""
    statistics: PenaltyStatistics = "batch"
    """Batch-normalization statistics of the penalty: as in flow-gradient."""
    name: Annotated[Literal["gradients"], HIDDEN] = "gradients"

    def make(self) -> Method:
        weights = {name: weight for name in FAMILIES if (weight := getattr(self, name)) > 0}
        if not weights:
            raise ConfigError(
                "--method gradients needs a weight above 0: --method.flow, --method.pixels or --method.affine"
            )
        families = {name: FAMILIES[name] for name in weights}

        def penalize(loss_fn: LossFn, images: Array, keys: Array, *, has_aux: bool = False) -> tuple[Array, Any]:
            penalties, result = deformreg.gradient_penalties(loss_fn, images, families, has_aux=has_aux)
            return sum(weights[name] * penalties[name] for name in weights), result

        penalty = penalty_of(penalize, Exact.passes, statistics=self.statistics)
        return Method(self.name, penalty=penalty, weight=ramp(1.0, self.weight_ramp_steps))
