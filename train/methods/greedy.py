"""Training on images whose pixels take the displacements that raise the loss most, found in one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from jax import Array

import deformreg
from deformreg.balls import scaled
from train.methods.families import watched
from train.methods.method import Forward, Inputs, Method, ramp
from train.ranges import HIDDEN, CountOrNone, Positive, Statistics


@dataclass(frozen=True)
class Greedy:
    """Training on images attacked by one step of the greedy attack, exact in the warp."""

    radius: Positive = 0.155
    """Budget of the attack, in pixels per flow component."""
    statistics: Statistics = "batch"
    """Batch-normalization statistics that the attack sees: the batch's or the running ones."""
    radius_ramp_steps: CountOrNone = 0
    """Training steps over which the radius grows linearly from 0; 0 for the whole radius from the start."""
    name: Annotated[Literal["greedy"], HIDDEN] = "greedy"

    def make(self) -> Method:
        share = ramp(1.0, self.radius_ramp_steps)

        def attacked(forward: Forward, images: Array, keys: Array) -> Array:
            fixed, ball = forward.fixed(), deformreg.linf(self.radius)
            if self.radius_ramp_steps:
                ball = scaled(ball, share(forward.step))
            return deformreg.greedy_step(lambda some: fixed.losses(some, self.statistics), images, ball=ball).images

        return Method(self.name, Inputs(attacked, passes=2.0), watch=watched("flow", self.radius))
