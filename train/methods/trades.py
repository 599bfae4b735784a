"""TRADES: the clean loss, and the divergence between the predictions on clean and on attacked images.

References:
    Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array

import deformreg
from train.methods.inputs import per_example
from train.methods.method import STANDARD_PASSES, Forward, Method, Penalty, Terms
from train.ranges import HIDDEN, NonNegative, Positive, Statistics, Steps

_FAMILIES = {
    "flow": lambda radius: deformreg.flow(within=radius),
    "pixels": lambda radius: deformreg.additive(image_range=(0.0, 1.0)),
}


@dataclass(frozen=True)
class Trades:
    """The clean loss plus the divergence between the predictions on the clean and the attacked image."""

    beta: NonNegative = 6.0
    """Weight of the divergence; 0 is standard training."""
    family: Literal["flow", "pixels"] = "flow"
    """What the attack changes: displacements or pixel values."""
    radius: Positive = 0.155
    """Budget of the attack: pixels per component (flow) or image units in [0, 1] (pixels)."""
    steps: Steps = 7
    """Gradient steps of the attack, which ascends the divergence."""
    step_size: Positive | None = None
    """Step of the attack in the radius' unit; by default 2.5 * radius / steps."""
    statistics: Statistics = "batch"
    """Batch-normalization statistics that attack and divergence see: the batch's or the running ones."""
    name: Annotated[Literal["trades"], HIDDEN] = "trades"

    def make(self) -> Method:
        ball, family = deformreg.linf(self.radius), _FAMILIES[self.family](self.radius)
        step_size = 2.5 * self.radius / self.steps if self.step_size is None else self.step_size

        def terms(forward: Forward, images: Array, keys: Array) -> Terms:
            losses, aux = forward.train(images)
            fixed = forward.fixed()
            clean = jax.lax.stop_gradient(aux.logits)
            attacked = deformreg.multi_step(
                lambda tried: divergence(clean, fixed.logits(tried, self.statistics)),
                images,
                ball=ball,
                perturbation=family,
                num_steps=self.steps,
                step_size=step_size,
                start=per_example(ball, keys),
                key=keys[0],
            ).images
            return Terms(losses, divergence(aux.logits, forward.logits(attacked, self.statistics)), aux)

        passes = 2 * STANDARD_PASSES + 2.0 * self.steps
        return Method(self.name, penalty=Penalty(terms, passes), weight=optax.constant_schedule(self.beta))


def divergence(logits: Array, others: Array) -> Array:
    """Kullback-Leibler divergence of each example's second prediction from its first, in nats: ``float[n]``."""
    first, second = jax.nn.log_softmax(logits), jax.nn.log_softmax(others)
    return jnp.sum(jnp.exp(first) * (first - second), axis=1)
