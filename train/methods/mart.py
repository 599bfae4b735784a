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

from deformreg import cross_entropy
from train.methods.families import InFamily, Stepped
from train.methods.method import STANDARD_PASSES, Forward, Method, Penalty, Terms, ramp
from train.methods.trades import divergence
from train.ranges import HIDDEN, NonNegative


@dataclass(frozen=True)
class Mart(Stepped, InFamily):
    """A boosted loss on attacked images, plus their divergence, weighted by the doubt about the clean image.

    The attack ascends the cross-entropy.
    """

    beta: NonNegative = 5.0
    """Weight of the divergence; with 0 the method is adversarial training with the boosted loss."""
    name: Annotated[Literal["mart"], HIDDEN] = "mart"

    def make(self) -> Method:
        attack = self.attack(self.family, self.bound, self.statistics)

        def terms(forward: Forward, images: Array, keys: Array) -> Terms:
            _, aux = forward.train(attack.make(forward, images, keys))
            clean = forward.logits(images, self.statistics)
            doubt = 1 - jnp.exp(-cross_entropy(clean, forward.classes))
            losses = forward.weighted(boosted_loss(aux.logits, forward.classes))
            return Terms(losses, doubt * divergence(clean, aux.logits), aux)

        passes = 2 * STANDARD_PASSES + attack.passes
        watch = self.watch(self.family, self.bound)
        return Method(self.name, penalty=Penalty(terms, passes), weight=ramp(self.beta, 0), watch=watch)


def boosted_loss(logits: Array, labels: Array) -> Array:
    """The cross-entropy plus ``-log(1 - p)``, where p is the probability of the likeliest wrong class: ``float[n]``."""
    log_probabilities, classes = jax.nn.log_softmax(logits), jnp.arange(logits.shape[1])
    rivals = jnp.argmax(jnp.where(labels[:, None] == classes, -jnp.inf, log_probabilities), axis=1)
    # 1 - p is the sum of the other probabilities: the difference would round to zero for a p close to 1.
    others = jnp.where(rivals[:, None] == classes, -jnp.inf, log_probabilities)
    return cross_entropy(logits, labels) - jax.nn.logsumexp(others, axis=1)
