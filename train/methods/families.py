"""Options of methods that work in pixels as well as with flows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import deformreg
from train.methods.inputs import attacked
from train.methods.method import Inputs
from train.ranges import Positive, Statistics

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
