"""Adversarial training: on images attacked by projected gradient ascent, in pixels or by flows.

References:
    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from train.methods.families import Stepped
from train.methods.method import Method
from train.ranges import HIDDEN, Positive, Statistics


@dataclass(frozen=True)
class _Attacked(Stepped):
    """Options that both attacks have."""

    statistics: Statistics = "batch"
    """Batch-normalization statistics that the attack sees: the batch's or the running ones."""

    def _make(self, name: str, family: str, radius: float) -> Method:
        return Method(name, self.attack(family, radius, self.statistics), watch=self.watch(family, radius))


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
