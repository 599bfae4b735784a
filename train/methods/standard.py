"""Standard training, on clean images or on images under noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from train.methods.inputs import noisy
from train.methods.method import CLEAN, Method
from train.ranges import HIDDEN, NonNegative


@dataclass(frozen=True)
class Standard:
    """The loss of the images alone."""

    random_start: NonNegative = 0.0
    """Standard deviation in pixels of Gaussian noise on every pixel's displacement, which certified flows need;
    0 for clean images."""
    name: Annotated[Literal["standard"], HIDDEN] = "standard"

    def make(self) -> Method:
        return Method(self.name, noisy(self.random_start) if self.random_start else CLEAN)
