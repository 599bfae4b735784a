"""Curvature regularization (CURE): the gradient changes little along the strongest first-order attack.

References:
    Moosavi-Dezfooli et al., "Robustness via Curvature Regularization, and Vice Versa", CVPR 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from jax import Array

import deformreg
from deformreg.penalties import LossFn
from train.methods.families import Penalized
from train.methods.method import Method, ramp
from train.methods.penalties import penalty_of
from train.ranges import HIDDEN, NonNegative


@dataclass(frozen=True)
class Cure(Penalized):
    """The squared change of the loss's gradient along a step of size `radius` in the direction of its signs."""

    weight: NonNegative = 4.0
    """Weight of the squared change."""
    name: Annotated[Literal["cure"], HIDDEN] = "cure"

    def make(self) -> Method:
        family, ball = self.perturbation(), deformreg.linf(self.bound)
        change = partial(deformreg.penalties.curvature_penalty, perturbation=family, ball=ball)

        def penalize(loss_fn: LossFn, images: Array, keys: Array, *, has_aux: bool = False) -> tuple[Array, Any]:
            return change(loss_fn, images, has_aux=has_aux)

        penalty = penalty_of(penalize, 12.0, statistics=self.statistics)  # the exact gradient penalty at two images
        return Method(self.name, penalty=penalty, weight=ramp(self.weight, self.weight_ramp_steps))
