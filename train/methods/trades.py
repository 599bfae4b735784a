"""TRADES: the clean loss, and the divergence between the predictions on clean and on attacked images.

References:
    Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jax import Array

import deformreg
from train.methods.families import InFamily, watched
from train.methods.inputs import within
from train.methods.method import STANDARD_PASSES, Forward, Method, Penalty, Terms, ramp
from train.ranges import HIDDEN, CountOrNone, NonNegative, Positive, Steps


@dataclass(frozen=True)
class Trades(InFamily):
    """The clean loss plus the divergence between the predictions on the clean and the attacked image."""

    beta: NonNegative = 6.0
    """Weight of the divergence; 0 is standard training."""
    steps: Steps = 7
    """Gradient steps of the attack, which ascends the divergence."""
    step_size: Positive | None = None
    """Step of the attack in the radius' unit; by default 2.5 * radius / steps."""
    radius_ramp_steps: CountOrNone = 0
    """Training steps over which the radius grows linearly from 0; 0 for the whole radius from the start."""
    name: Annotated[Literal["trades"], HIDDEN] = "trades"

    def make(self) -> Method:
        ball, family = deformreg.linf(self.bound), self.perturbation()
        share = ramp(1.0, self.radius_ramp_steps)

        def terms(forward: Forward, images: Array, keys: Array) -> Terms:
            losses, aux = forward.train(images)
            fixed = forward.fixed()
            clean = jax.lax.stop_gradient(aux.logits)
            attacked = deformreg.multi_step(
                lambda tried: divergence(clean, fixed.logits(tried, self.statistics)),
                images,
                **within(ball, keys, self.steps, self.step_size, share=share(forward.step)),
                perturbation=family,
            ).images
            return Terms(losses, divergence(aux.logits, forward.logits(attacked, self.statistics)), aux)

        passes = 2 * STANDARD_PASSES + 2.0 * self.steps
        watch = watched(self.family, self.bound) if self.steps == 1 else None
        return Method(self.name, penalty=Penalty(terms, passes), weight=ramp(self.beta, 0), watch=watch)


def divergence(logits: Array, others: Array) -> Array:
    """Kullback-Leibler divergence of each example's second prediction from its first, in nats: ``float[n]``."""
    first, second = jax.nn.log_softmax(logits), jax.nn.log_softmax(others)
    return jnp.sum(jnp.exp(first) * (first - second), axis=1)
