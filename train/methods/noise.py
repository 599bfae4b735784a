"""Training on images under the noise of a certificate, with or without the flow gradient penalty.

References:
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019: a network must
    know the noise under which it is to answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

import deformreg
from train.errors import ConfigError
from train.methods.inputs import noisy
from train.methods.method import NO_PENALTY, Method, ramp
from train.methods.penalties import Exact, gradient_penalty
from train.ranges import HIDDEN, Count, NonNegative, Positive
from train.smoothing import FAMILIES, SIGMA, SUMMARIES, FamilyName, LawName


@dataclass(frozen=True)
class Noise:
    """Training on images under random deformations of a family: what a certificate for that family needs."""

    family: Annotated[FamilyName, tyro.conf.arg(help=f"Random deformations. {SUMMARIES}.")] = "flow"
    law: LawName = "gaussian"
    """Distribution of the noise."""
    sigma: Annotated[tuple[Positive, ...], tyro.conf.arg(help=SIGMA)] = ()
    stride: Count = 4
    """Pixels between the nodes of the coarse flow of `smooth`."""
    flow_gradient: NonNegative = 0.0
    """Weight of the squared flow gradient at the noisy images, in pixels squared per nat; 0 for none."""
    name: Annotated[Literal["noise"], HIDDEN] = "noise"

    def make(self) -> Method:
        if self.family != "smooth" and self.stride != type(self).stride:
            raise ConfigError(f"--method.stride needs --method.family smooth, got {self.family}")
        family = FAMILIES[self.family]
        law = family.law(self.law, family.widths(self.sigma, option="--method.sigma"))
        penalty = gradient_penalty(deformreg.flow(), Exact()) if self.flow_gradient else NO_PENALTY
        inputs = noisy(law.noise, family.make(self.stride))
        return Method(self.name, inputs, penalty, ramp(self.flow_gradient, 0))
