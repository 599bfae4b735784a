"""MART: a boosted loss on attacked images, and the divergence of the predictions where the clean one is unsure.

References:
    Wang et al., "Improving Adversarial Robustness Requires Revisiting Misclassified Examples", ICLR 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jax import Array

import deformreg
from deformreg import cross_entropy
from train.methods.families import InFamily, watched
from train.methods.inputs import attacked
from train.methods.method import STANDARD_PASSES, Forward, Method, Penalty, Terms, ramp
from train.methods.trades import divergence
from train.ranges import HIDDEN, CountOrNone, NonNegative, Positive, Steps


@dataclass(frozen=True)
class Mart(InFamily):
    """A boosted loss on attacked images, plus their divergence, weighted by the doubt about the clean image."""

    beta: NonNegative = 5.0
    """Weight of the divergence; with 0 the method is adversarial training with the boosted loss."""
    steps: Steps = 7
    """Gradient steps of the attack, which ascends the cross-entropy."""
    step_size: Positive | None = None
    """Step of the attack in the radius' unit; by default 2.5 * radius / steps."""
    radius_ramp_steps: CountOrNone = 0
    """Training steps over which the radius grows linearly from 0; 0 for the whole radius from the start."""
    name: Annotated[Literal["mart"], HIDDEN] = "mart"

    def make(self) -> Method:
        attack = attacked(
            self.perturbation(),
            deformreg.linf(self.bound),
            num_steps=self.steps,
            step_size=self.step_size,
            statistics=self.statistics,
            share=ramp(1.0, self.radius_ramp_steps),
        )

        def terms(forward: Forward, images: Array, keys: Array) -> Terms:
            _, aux = forward.train(attack.make(forward, images, keys))
            clean = forward.logits(images, self.statistics)
            doubt = 1 - jnp.exp(-cross_entropy(clean, forward.classes))
            losses = forward.weighted(boosted_loss(aux.logits, forward.classes))
            return Terms(losses, doubt * divergence(clean, aux.logits), aux)

        passes = 2 * STANDARD_PASSES + attack.passes
        watch = watched(self.family, self.bound) if self.steps == 1 else None
        return Method(self.name, penalty=Penalty(terms, passes), weight=ramp(self.beta, 0), watch=watch)


def boosted_loss(logits: Array, labels: Array) -> Array:
    """The cross-entropy plus ``-log(1 - p)``, where p is the probability of the likeliest wrong class: ``float[n]``."""
    log_probabilities, classes = jax.nn.log_softmax(logits), jnp.arange(logits.shape[1])
    rivals = jnp.argmax(jnp.where(labels[:, None] == classes, -jnp.inf, log_probabilities), axis=1)
    # 1 - p is the sum of the other probabilities: the difference would round to zero for a p close to 1.
    others = jnp.where(rivals[:, None] == classes, -jnp.inf, log_probabilities)
    return cross_entropy(logits, labels) - jax.nn.logsumexp(others, axis=1)
