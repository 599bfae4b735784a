"""Fast adversarial training: attacks of one step from a random start.

References:
    Wong et al., "Fast is better than free: Revisiting adversarial training", ICLR 2020 (`fast`).
    de Jorge et al., "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training", NeurIPS 2022
    (`n-fgsm`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import deformreg
from train.methods.families import InFamily, watched
from train.methods.inputs import attacked
from train.methods.method import Method, ramp
from train.ranges import HIDDEN, CountOrNone, Positive


@dataclass(frozen=True)
class _OneStep(InFamily):
    """Options of both."""

    radius_ramp_steps: CountOrNone = 0
    """Training steps over which the radius grows linearly from 0; 0 for the whole radius from the start."""

    def _make(self, name: str, *, noise: float, step: float, reach: float) -> Method:
        """A step of `step` radii from noise within `noise` radii, projected to `reach` radii."""
        start, ball = deformreg.linf(noise * self.bound), deformreg.linf(reach * self.bound)
        inputs = attacked(
            self.perturbation(reach),
            ball,
            num_steps=1,
            step_size=step * self.bound,
            statistics=self.statistics,
            start=start,
            share=ramp(1.0, self.radius_ramp_steps),
        )
        return Method(name, inputs, watch=watched(self.family, self.bound))


@dataclass(frozen=True)
class Fast(_OneStep):
    """Training on images attacked by one step from a random point of the ball, projected back."""

    step: Positive = 1.25
    """Size of the step in radii."""
    name: Annotated[Literal["fast"], HIDDEN] = "fast"

    def make(self) -> Method:
        return self._make(self.name, noise=1.0, step=self.step, reach=1.0)


@dataclass(frozen=True)
class NFgsm(_OneStep):
    """Training on images attacked by one step from wide noise, without a projection."""

    noise: Positive = 2.0
    """Radius of the noise in radii of the attack."""
    name: Annotated[Literal["n-fgsm"], HIDDEN] = "n-fgsm"

    def make(self) -> Method:
        # No point that the step can reach is outside of this ball: nothing is projected.
        return self._make(self.name, noise=self.noise, step=1.0, reach=1.0 + self.noise)
