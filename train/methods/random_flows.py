"""Training on images under random smooth flows: the augmentation that every defense must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

import deformreg
from train.methods.inputs import noisy
from train.methods.method import Method
from train.ranges import HIDDEN, Positive


@dataclass(frozen=True)
class RandomFlows:
    """Training on images under random smooth flows; nothing is attacked."""

    radius: Positive = 0.5
    """Largest displacement per component, in pixels; every node of a coarse flow draws uniformly below it."""
    stride: Annotated[int, Interval(ge=1, le=512)] = 4
    """Pixels between the nodes, between which the flow is interpolated; 1 for independent pixels."""
    name: Annotated[Literal["random-flows"], HIDDEN] = "random-flows"

    def make(self) -> Method:
        family = deformreg.lowres_flow(self.stride, boundary="zeros")
        return Method(self.name, noisy(deformreg.noise.uniform(self.radius), family))
