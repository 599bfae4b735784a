"""Gradient regularization: the squared or the dual norm of the loss's gradient with respect to pixels or to a flow.

References:
    Xia and Li, "Improving Resistance to Adversarial Deformations by Regularizing Gradients", Neurocomputing 455, 2021.
    Ross and Doshi-Velez, "Improving the Adversarial Robustness and Interpretability of Deep Neural Networks by
    Regularizing Their Input Gradients", AAAI 2018.
    Rodriguez-Munoz et al., "Characterizing Model Robustness via Natural Input Gradients", ECCV 2024 (the dual norm of
    linf, with respect to pixels).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

import deformreg
from train.methods.families import Stepped
from train.methods.inputs import in_turn, noisy
from train.methods.method import CLEAN, Inputs, Method, ramp
from train.methods.penalties import SIZES, AnyRule, Exact, gradient_penalty
from train.ranges import HIDDEN, Count, CountOrNone, NonNegative, PenaltyStatistics, Positive, Share


@dataclass(frozen=True)
class _Gradient:
    """Options that all gradient penalties have."""

    weight: Positive = 1.0
    """Weight of the mean penalty, in pixels squared per nat (flow) or image units squared per nat (input).
    With a dual norm it is a length in pixels or image units: that of the attack to resist."""
    size: Literal["squared", "linf", "l2", "pixelwise_l2"] = "squared"
    """What is penalized: the squared Euclidean norm of the gradient, or the dual norm of a ball.
    The dual norm times a radius is the most that the loss increases in the ball of that radius, to first order:
    for linf, the sum of the gradient's absolute values."""
    weight_ramp_steps: CountOrNone = 0
    """Steps over which the weight grows linearly from 0, from the first step with the penalty on; 0 for no growth."""
    rule: Annotated[AnyRule, Field(discriminator="name")] = field(default_factory=Exact)
    """How the penalty's derivative is computed; --rule NAME chooses."""
    every: Count = 1
    """Take the penalty on every k-th step only, with k times the weight."""
    first_step: CountOrNone = 0
    """The first step with the penalty; the steps before it cost what a standard step costs."""
    share: Share = 1.0
    """Fraction of each batch that the penalty is taken on: the first images of each device."""
    statistics: PenaltyStatistics = "batch"
    """Batch-normalization statistics of the penalty (and the attack), the batch's or the running ones.
    With the batch's, as in the authors' code, examples interact.
    `held` takes the batch's as constants of the gradient, as in evaluation: each image has its own penalty,
    and memory-bound accelerators move a quarter fewer bytes; --rule exact only.
    With the running ones each image has its own penalty, at the cost of a second pass."""

    def _make(
        self, name: str, family: deformreg.Perturbation, inputs: Inputs = CLEAN, watch: Inputs | None = None
    ) -> Method:
        penalty = gradient_penalty(
            family, self.rule, size=SIZES[self.size], share=self.share, statistics=self.statistics
        )
        weight = ramp(self.weight, self.weight_ramp_steps, first_step=self.first_step)
        return Method(name, inputs, penalty, weight, self.every, self.first_step, watch)


@dataclass(frozen=True)
class InputGradient(_Gradient):
    """The squared gradient of the loss with respect to the pixels."""

    name: Annotated[Literal["input-gradient"], HIDDEN] = "input-gradient"

    def make(self) -> Method:
        return self._make(self.name, deformreg.additive())


@dataclass(frozen=True)
class FlowGradient(_Gradient):
    """The squared gradient of the loss with respect to a flow: the paper's regularization."""

    random_start: NonNegative = 0.0
    """Standard deviation, in pixels, of a random flow that deforms the images before loss and penalty; 0 for none.
    The released code's 0.01 normalized units are 0.155 pixels at 32x32."""
    name: Annotated[Literal["flow-gradient"], HIDDEN] = "flow-gradient"

    def make(self) -> Method:
        return self._make(self.name, deformreg.flow(), noisy(self.random_start) if self.random_start else CLEAN)


@dataclass(frozen=True)
class _OnAttacked(Stepped, _Gradient):
    """Options of the flow gradient penalty on attacked images."""

    def _attacked(self, family: str, radius: float) -> Inputs:
        return self.attack(family, radius, "running" if self.statistics == "running" else "batch")


@dataclass(frozen=True)
class FlowGradientDeformation(_OnAttacked):
    """The flow gradient penalty on images attacked by flows."""

    random_start: NonNegative = 0.0
    """Standard deviation, in pixels, of a random flow that deforms the images after the attack; 0 for none."""
    radius: Positive = 0.155
    """Budget of the attack: pixels per component."""
    name: Annotated[Literal["flow-gradient+deformation"], HIDDEN] = "flow-gradient+deformation"

    def make(self) -> Method:
        inputs = self._attacked("flow", self.radius)
        if self.random_start:
            inputs = in_turn(inputs, noisy(self.random_start))
        return self._make(self.name, deformreg.flow(), inputs, self.watch("flow", self.radius))


@dataclass(frozen=True)
class FlowGradientAdversarial(_OnAttacked):
    """The flow gradient penalty on images whose pixels are attacked."""

    radius: Positive = 8 / 255
    """Budget of the attack per pixel value, for images in [0, 1]."""
    name: Annotated[Literal["flow-gradient+adversarial"], HIDDEN] = "flow-gradient+adversarial"

    def make(self) -> Method:
        return self._make(
            self.name, deformreg.flow(), self._attacked("pixels", self.radius), self.watch("pixels", self.radius)
        )
