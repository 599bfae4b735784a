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
from train.methods.families import InFamily, Stepped
from train.methods.inputs import within
from train.methods.method import STANDARD_PASSES, Forward, Method, Penalty, Terms, ramp
from train.ranges import HIDDEN, NonNegative


@dataclass(frozen=True)
class Trades(Stepped, InFamily):
    """The clean loss plus the divergence between the predictions on the clean and the attacked image.

    The attack ascends the divergence.
    """

    beta: NonNegative = 6.0
    """Weight of the divergence; 0 is standard training."""
    name: Annotated[Literal["trades"], HIDDEN] = "trades"

    def make(self) -> Method:
        ball, family = deformreg.linf(self.bound), self.perturbation()

        def terms(forward: Forward, images: Array, keys: Array) -> Terms:
            losses, aux = forward.train(images)
            fixed = forward.fixed()
            clean = jax.lax.stop_gradient(aux.logits)
            attacked = deformreg.multi_step(
                lambda tried: divergence(clean, fixed.logits(tried, self.statistics)),
                images,
                **within(ball, keys, self.steps, self.step_size, share=self.radius_share(forward.step)),
                perturbation=family,
            ).images
            return Terms(losses, divergence(aux.logits, forward.logits(attacked, self.statistics)), aux)

        passes = 2 * STANDARD_PASSES + 2.0 * self.steps
        watch = self.watch(self.family, self.bound)
        return Method(self.name, penalty=Penalty(terms, passes), weight=ramp(self.beta, 0), watch=watch)


def divergence(logits: Array, others: Array) -> Array:
    """Kullback-Leibler divergence of each example's second prediction from its first, in nats: ``float[n]``."""
    first, second = jax.nn.log_softmax(logits), jax.nn.log_softmax(others)
    return jnp.sum(jnp.exp(first) * (first - second), axis=1)
