"""Adversarial training: on images attacked by projected gradient ascent, in pixels or by flows.

References:
    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import deformreg
from train.methods.inputs import attacked
from train.methods.method import Method
from train.ranges import HIDDEN, Positive, Statistics, Steps


@dataclass(frozen=True)
class _Attacked:
    """Options that both attacks have."""

    steps: Steps = 7
    """Gradient steps of the attack."""
    step_size: Positive | None = None
    """Step of the attack in the radius' unit; by default 2.5 * radius / steps."""
    statistics: Statistics = "batch"
    """Batch-normalization statistics that the attack sees: the batch's or the running ones."""

    def _make(self, name: str, family: deformreg.Perturbation, radius: float) -> Method:
        ball = deformreg.linf(radius)
        inputs = attacked(family, ball, num_steps=self.steps, step_size=self.step_size, statistics=self.statistics)
        return Method(name, inputs)


@dataclass(frozen=True)
class Adversarial(_Attacked):
    """Training on images whose pixels are attacked."""

    radius: Positive = 8 / 255
    """Budget of the attack per pixel value, for images in [0, 1]."""
    name: Annotated[Literal["adversarial"], HIDDEN] = "adversarial"

    def make(self) -> Method:
        return self._make(self.name, deformreg.additive(image_range=(0.0, 1.0)), self.radius)


@dataclass(frozen=True)
class Deformation(_Attacked):
    """Training on images attacked by flows."""

    radius: Positive = 0.155
    """Budget of the attack, in pixels per flow component."""
    name: Annotated[Literal["deformation"], HIDDEN] = "deformation"

    def make(self) -> Method:
        return self._make(self.name, deformreg.flow(within=self.radius), self.radius)
