"""Options that several methods have: of a family, pixels or flows, and of an attack by gradient steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import optax

import deformreg
from train.methods.inputs import attacked
from train.methods.method import Inputs, ramp
from train.ranges import CountOrNone, Positive, Statistics, Steps

_WATCH_STEPS = 10

RADII = {"flow": 0.155, "pixels": 8 / 255}
"""The default radius in every family: pixels of displacement, and units of images in [0, 1]."""


@dataclass(frozen=True)
class InFamily:
    """What may be changed, and how much of it."""

    family: Literal["flow", "pixels"] = "flow"
    """What is changed: displacements (flow) or pixel values (pixels)."""
    radius: Positive | None = None
    """Budget: pixels per component (flow) or image units in [0, 1] (pixels); by default 0.155 or 8/255."""
    statistics: Statistics = "batch"
    """Batch-normalization statistics of the attack and the penalty: the batch's or the running ones."""

    @property
    def bound(self) -> float:
        """The radius, or its default."""
        return RADII[self.family] if self.radius is None else self.radius

    def perturbation(self, multiple: float = 1.0) -> deformreg.Perturbation:
        """The family, for parameters up to a multiple of the radius."""
        return perturbation(self.family, multiple * self.bound)


@dataclass(frozen=True)
class Penalized(InFamily):
    """When the penalty comes in; each method has a `weight` with a default and a meaning of its own."""

    weight_ramp_steps: CountOrNone = 0
    """Steps over which the weight grows linearly from 0; 0 for the whole weight from the start."""


@dataclass(frozen=True)
class Stepped:
    """How an attack ascends; what it ascends is said by the method."""

    steps: Steps = 7
    """Gradient steps of the attack."""
    step_size: Positive | None = None
    """Step of the attack in the radius' unit; by default 2.5 * radius / steps."""
    radius_ramp_steps: CountOrNone = 0
    """Training steps over which the radius grows linearly from 0; 0 for the whole radius from the start."""

    @property
    def radius_share(self) -> optax.Schedule:
        """The share of the radius, as a function of the training step."""
        return ramp(1.0, self.radius_ramp_steps)

    def attack(self, family: str, radius: float, statistics: Statistics) -> Inputs:
        """Images on which the attack ascends the loss."""
        return attacked(
            perturbation(family, radius),
            deformreg.linf(radius),
            num_steps=self.steps,
            step_size=self.step_size,
            statistics=statistics,
            share=self.radius_share,
        )

    def watch(self, family: str, radius: float) -> Inputs | None:
        """What `watched` makes, for a training on an attack of one step."""
        return watched(family, radius) if self.steps == 1 else None


def perturbation(family: str, radius: float) -> deformreg.Perturbation:
    """The family of that name, for parameters up to a radius."""
    if family == "pixels":
        return deformreg.additive(image_range=(0.0, 1.0))
    return deformreg.flow(within=radius)


def watched(family: str, radius: float) -> Inputs:
    """The attack of ten steps that shows whether training on an attack of one step still protects against more."""
    return attacked(
        perturbation(family, radius), deformreg.linf(radius), num_steps=_WATCH_STEPS, step_size=None,
        statistics="running",
    )  # fmt: skip
