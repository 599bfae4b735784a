"""Training on the worst of random rotations and translations.

References:
    Engstrom et al., "Exploring the Landscape of Spatial Robustness", ICML 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

import deformreg
from train.methods.inputs import worst_of
from train.methods.method import Method
from train.ranges import HIDDEN, Positive, Statistics


@dataclass(frozen=True)
class Spatial:
    """Training on the worst of random rotations with translations."""

    radius: Positive = 3.0
    """Largest translation along either axis, in pixels."""
    degrees: Annotated[float, Interval(ge=0, le=360)] = 30.0
    """Largest rotation, either way."""
    draws: Annotated[int, Interval(ge=1, le=10**4)] = 10
    """Random rotations with translations per image. Of those that are misclassified, or of all if none is, the one of
    highest loss is trained on."""
    statistics: Statistics = "batch"
    """Batch-normalization statistics that judge them: the batch's or the running ones."""
    name: Annotated[Literal["spatial"], HIDDEN] = "spatial"

    def make(self) -> Method:
        attack = deformreg.attacks.rotation_translation(
            max_degrees=self.degrees, max_pixels=self.radius, grid=None, num_draws=self.draws, keep="best"
        )
        return Method(self.name, worst_of(attack, self.statistics))
