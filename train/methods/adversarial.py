"""Adversarial training: on images attacked by projected gradient ascent, in pixels or by flows.

References:
    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import deformreg
from train.methods.families import perturbation, watched
from train.methods.inputs import attacked
from train.methods.method import Method, ramp
from train.ranges import HIDDEN, CountOrNone, Positive, Statistics, Steps


@dataclass(frozen=True)
class _Attacked:
    """Options that both attacks have."""

    steps: Steps = 7
    """Gradient steps of the attack."""
    step_size: Positive | None = None
    """Step of the attack in the radius' unit; by default 2.5 * radius / steps."""
    statistics: Statistics = "batch"
    """Batch-normalization statistics that the attack sees: the batch's or the running ones."""
    radius_ramp_steps: CountOrNone = 0
    """Training steps over which the radius grows linearly from 0; 0 for the whole radius from the start."""

    def _make(self, name: str, family: str, radius: float) -> Method:
        inputs = attacked(
            perturbation(family, radius),
            deformreg.linf(radius),
            num_steps=self.steps,
            step_size=self.step_size,
            statistics=self.statistics,
            share=ramp(1.0, self.radius_ramp_steps),
        )
        return Method(name, inputs, watch=watched(family, radius) if self.steps == 1 else None)


@dataclass(frozen=True)
class Adversarial(_Attacked):
    """Training on images whose pixels are attacked."""

    radius: Positive = 8 / 255
    """Budget of the attack per pixel value, for images in [0, 1]."""
    name: Annotated[Literal["adversarial"], HIDDEN] = "adversarial"

    def make(self) -> Method:
        return self._make(self.name, "pixels", self.radius)


@dataclass(frozen=True)
class Deformation(_Attacked):
    """Training on images attacked by flows."""

    radius: Positive = 0.155
    """Budget of the attack, in pixels per flow component."""
    name: Annotated[Literal["deformation"], HIDDEN] = "deformation"

    def make(self) -> Method:
        return self._make(self.name, "flow", self.radius)
