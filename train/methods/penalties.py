"""What a method adds to the loss: gradient penalties by one of three rules, and other penalties of the library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

import deformreg
from deformreg import Perturbation, l2, linf, pixelwise_l2
from deformreg.penalties import LossFn, Size, squared_norm
from train.errors import ConfigError
from train.methods.held import held_statistics
from train.methods.method import STANDARD_PASSES, Aux, Forward, Penalty, Terms
from train.ranges import HIDDEN, PenaltyStatistics, Positive

Rule = Callable[..., tuple[Array, Any]]
"""``(loss_fn, images, family, size=..., has_aux=...) -> (penalties[n], losses)``: `deformreg.gradient_penalty`."""

SIZES: dict[str, Size] = {
    "squared": squared_norm,
    **{ball.name: ball.support for ball in (linf(1.0), l2(1.0), pixelwise_l2(1.0))},
}
"""Sizes of a gradient: its squared Euclidean norm, and the dual norms of the balls."""


@dataclass(frozen=True)
class Exact:
    """Double backpropagation: reverse over reverse."""

    name: Annotated[Literal["exact"], HIDDEN] = "exact"

    passes = 6.0  # forward, backward to the images, and the reverse of both

    def make(self) -> Rule:
        return deformreg.gradient_penalty


@dataclass(frozen=True)
class ForwardOverReverse:
    """The exact penalty in the memory of a rematerialized network: use it with --model.remat."""

    name: Annotated[Literal["forward-over-reverse"], HIDDEN] = "forward-over-reverse"

    passes = 8.0

    def make(self) -> Rule:
        return deformreg.penalties.forward_over_reverse_penalty


@dataclass(frozen=True)
class FiniteDifference:
    """A finite difference along each example's own gradient: the memory of one standard pass."""

    step_size: Positive = 0.01
    """Step of the difference, in the Euclidean norm over a whole example: pixels (flow) or image units."""
    name: Annotated[Literal["finite-difference"], HIDDEN] = "finite-difference"

    passes = 8.0

    def make(self) -> Rule:
        return partial(deformreg.finite_difference_penalty, step_size=self.step_size)


AnyRule = Exact | ForwardOverReverse | FiniteDifference

RULES = {kind.name: kind for kind in get_args(AnyRule)}


Penalize = Callable[..., tuple[Array, Any]]
"""``(loss_fn, images, keys, has_aux=...) -> (penalties[n], losses)``, with one random key per example."""


def gradient_penalty(
    family: Perturbation,
    rule: AnyRule,
    *,
    size: Size = squared_norm,
    share: float = 1.0,
    statistics: PenaltyStatistics = "batch",
) -> Penalty:
    """The size of the loss's gradient with respect to a family's parameters.

    Args:
        family: the perturbations.
        rule: how its derivative is computed.
        size: of the gradient: its squared norm, or the support of a ball.
        share: the fraction of each batch, in (0, 1], that the penalty is taken on: its first examples.
        statistics: as in `penalty_of`.
    """
    differentiate = rule.make()

    def penalize(loss_fn: LossFn, images: Array, keys: Array, *, has_aux: bool = False) -> tuple[Array, Any]:
        return differentiate(loss_fn, images, family, size=size, has_aux=has_aux)

    return penalty_of(penalize, rule.passes, share=share, statistics=statistics)


def penalty_of(
    penalize: Penalize, passes: float, *, share: float = 1.0, statistics: PenaltyStatistics = "batch"
) -> Penalty:
    """The part of a method that takes a penalty of `deformreg.penalties`.

    Args:
        penalize: the penalty.
        passes: its cost with that of the loss, in forward passes.
        share: the fraction of each batch, in (0, 1], that the penalty is taken on: its first examples.
        statistics: of batch normalization. The batch's: losses and penalties share one pass, and examples interact.
            The batch's, held: a penalty per image in that one pass; the penalty must differentiate twice. The running
            ones: a penalty per image, at the price of a second pass.
    """

    def on_all(forward: Forward, images: Array, keys: Array) -> Terms:
        if statistics == "held":
            with held_statistics() as layers:
                penalties, (losses, aux) = penalize(forward.train, images, keys, has_aux=True)
            if jax.tree.leaves(aux.batch_stats) and not layers:
                raise ConfigError("--method.statistics held needs a network with flax.linen.BatchNorm")
            return Terms(losses, penalties, aux)
        if statistics == "batch":
            penalties, (losses, aux) = penalize(forward.train, images, keys, has_aux=True)
            return Terms(losses, penalties, aux)
        losses, aux = forward.train(images)
        penalties, _ = penalize(lambda some: forward.losses(some, "running"), images, keys)
        return Terms(losses, penalties, aux)

    def terms(forward: Forward, images: Array, keys: Array) -> Terms:
        count = max(1, round(share * len(images)))
        if count == len(images):
            return on_all(forward, images, keys)
        first = on_all(forward.part(slice(count)), images[:count], keys[:count])
        losses, rest = forward.part(slice(count, None)).train(images[count:])
        # Both begin with the same running statistics, and each image counts alike.
        part = count / len(images)
        batch_stats = jax.tree.map(partial(_between, part), first.aux.batch_stats, rest.batch_stats)
        aux = Aux(jnp.concatenate([first.aux.logits, rest.logits]), batch_stats)
        return Terms(jnp.concatenate([first.losses, losses]), first.penalties, aux)

    penalized = passes + (STANDARD_PASSES if statistics == "running" else 0.0)
    return Penalty(terms, share * penalized + (1 - share) * STANDARD_PASSES)


def _between(part: float, first: Array, rest: Array) -> Array:
    """The mean of two running statistics; of whole numbers, such as counts of calls, the second."""
    return part * first + (1 - part) * rest if jnp.issubdtype(rest.dtype, jnp.floating) else rest
