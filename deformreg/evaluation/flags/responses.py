"""Red flags in a model's gradients at the clean images, and in short attacks at several budgets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from deformreg._arrays import choose, spread
from deformreg._programs import jitted
from deformreg.attacks.attack import Attack, Examples, row_keys
from deformreg.attacks.search import differentiate
from deformreg.evaluation.data import HostArray
from deformreg.evaluation.flags.flag import Flag
from deformreg.perturbations import Perturbation

UNDERFLOW = 88.0  # nats; exp(-88) is about the smallest normal float32
CONDITIONS = 5  # rows per example: one step, and many steps at four radii


class Responses(NamedTuple):
    """How examples that the suite's gradient attacks did not break respond to perturbations of one family.

    Attributes:
        share: of the examples that gradient attacks tried, those that none broke.
        gradients: float[n], the largest component of the loss's gradient at the zero perturbation.
        margins: float[n], the label's logit minus the largest other; zero for other criteria than one class per image.
        largest_logit: the largest absolute logit, for other criteria than one class per image also of the losses.
        change_of_images: the largest change that the zero perturbation makes to the images.
        change_of_outputs: and to the loss.
        radii: the examined budget, twice, four times that, and one that allows nearly anything; per component.
        standing: bool[4, n], at each radius, the examples that many sign steps do not break.
        losses: float[4, n], the largest loss that they reach.
        standing_after_one: bool[n], at the first radius, the examples that one step does not break.
    """

    share: float
    gradients: HostArray
    margins: HostArray
    largest_logit: float
    change_of_images: float
    change_of_outputs: float
    radii: tuple[float, float, float, float]
    standing: HostArray
    losses: HostArray
    standing_after_one: HostArray

    @property
    def observed(self) -> int:
        """The number of examples; none if the gradient attacks broke nearly all."""
        return len(self.gradients)

    @property
    def accuracies(self) -> tuple[float, float, float]:
        """The share of the tried examples that stands at the first three radii."""
        once, twice, four_times = (self.share * float(mask.mean()) for mask in self.standing[:3])
        return once, twice, four_times


def no_responses(share: float, change_of_images: float, radii: tuple[float, float, float, float]) -> Responses:
    """Responses of no examples."""
    nothing, masks = np.zeros(0), np.zeros((4, 0), bool)
    return Responses(share, nothing, nothing, 1.0, change_of_images, 0.0, radii, masks, np.zeros((4, 0)), masks[0])


class Rows(NamedTuple):
    """What is in the rows of a batch: examples, their clean losses, and the conditions of their short attacks.

    `steps` is the number of steps; below zero the row is idle.
    """

    data: Any
    losses: Any
    radii: Any
    lengths: Any
    steps: Any


class Felt(NamedTuple):
    """What the rows of a batch felt, one entry each.

    Attributes:
        gradients: the largest component of the loss's gradient at the zero perturbation.
        changes: the change that the zero perturbation makes to the loss.
        losses: the largest loss so far.
        broken: whether a step broke the model.
    """

    gradients: Any
    changes: Any
    losses: Any
    broken: Any


Probe = Callable[[Any, Partial, Rows], tuple[Felt, jax.Array]]
"""``(suite_radius, logits_fn, rows) -> (felt, steps)``: the steps are those that the batch took as a whole."""


def compile_probe(make: Callable[[Any], Perturbation]) -> Probe:
    """Jits short attacks in a family, which is made from a suite's (traced) radius, as one program per shape."""

    @jitted
    def probe(at: Any, logits_fn: Partial, rows: Rows) -> tuple[Felt, jax.Array]:
        family, data, count = make(at), rows.data, len(rows.steps)
        keys = row_keys(jax.random.key(0), jnp.arange(count))  # not used
        examples = Examples(data.images, data.labels, keys, None, data.criterion)
        zeros = jnp.zeros(count, jnp.promote_types(data.images.dtype, jnp.float32))

        def uphill(leaf: jax.Array, slope: jax.Array) -> jax.Array:
            length, radius = (spread(values, leaf).astype(leaf.dtype) for values in (rows.lengths, rows.radii))
            return jnp.clip(leaf + length * jnp.sign(slope), -radius, radius)

        def step(state: tuple[Any, Felt, jax.Array, jax.Array]) -> tuple[Any, Felt, jax.Array, jax.Array]:
            params, felt, done, number = state
            losses, gradient, _, broken = differentiate(logits_fn, family, "cross_entropy", examples, params)
            sizes = [jnp.max(jnp.abs(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(gradient)]
            losses = losses.astype(zeros.dtype)
            clean = rows.losses.astype(zeros.dtype)
            # Both are infinite where an image of a segmentation has pixels whose class is masked out.
            changes = jnp.where(losses == clean, 0, jnp.abs(losses - clean))
            now = Felt(
                jnp.where(number == 0, jnp.max(jnp.stack(sizes), axis=0).astype(zeros.dtype), felt.gradients),
                jnp.where(number == 0, changes, felt.changes),
                jnp.maximum(felt.losses, losses),
                felt.broken | broken,
            )
            felt = choose(done, felt, now)
            done |= felt.broken | (number >= rows.steps)
            moved = family.constrain(jax.tree.map(uphill, params, gradient), data.images)
            return moved, felt, done, number + 1

        none = jnp.zeros(count, bool)
        start = family.init(data.images), Felt(zeros, zeros, zeros - jnp.inf, none), rows.steps < 0, jnp.int32(0)
        _, felt, _, steps = jax.lax.while_loop(lambda state: ~state[2].all(), step, start)
        return felt, steps

    compiled: Probe = probe()
    return compiled


def half_side(attack: Attack, images: HostArray) -> float:
    """Half the side of the largest cube inside an attack's ball; 0 for no bound."""
    radius, norm = attack.budget.radius, attack.budget.norm
    if not isinstance(radius, (int, float)):
        return 0.0
    leaves = jax.tree.leaves(jax.eval_shape(attack.perturbation.init, images[:1]))
    squared_corners = {
        "linf": 1,
        "linf of the raw field": 1,
        "l2": sum(leaf.size for leaf in leaves),
        "pixelwise_l2": max(leaf.shape[-1] for leaf in leaves),
    }
    return radius / math.sqrt(squared_corners[norm]) if norm in squared_corners else 0.0


def zero_gradients(responses: Responses) -> Flag | None:
    """Flags gradients that are zero on more than 5 % of the examples."""
    if not responses.observed:
        return None
    # Beyond this margin every other class has probability zero in float32, and what is left of the loss's gradient
    # is rounding.
    share = responses.share * float(((responses.gradients == 0) | (responses.margins > UNDERFLOW)).mean())
    if share <= 0.05:
        return None
    return Flag(
        "zero_gradients",
        "The loss's gradient is zero, or not finite, on clean examples: a step function, logits too large for it, or a "
        "root or logarithm at zero.",
        {"share_of_examples": share, "median_margin": float(np.median(responses.margins))},
    )


class AtIdentity(Protocol):
    """What is known of the zero perturbation: see `Responses`."""

    @property
    def change_of_images(self) -> float: ...
    @property
    def change_of_outputs(self) -> float: ...
    @property
    def largest_logit(self) -> float: ...


def identity_changes_the_loss(responses: AtIdentity) -> Flag | None:
    """Flags a zero perturbation that is not the identity."""
    # The two outputs come from two programs, which round differently.
    if responses.change_of_images == 0 and responses.change_of_outputs <= 1e-2 * responses.largest_logit:
        return None
    return Flag(
        "identity_changes_the_loss",
        "The zero perturbation changes the images or the outputs: attack and evaluation see different models. A model "
        "that draws random numbers in Python does so, too.",
        {
            "largest_change_of_images": responses.change_of_images,
            "largest_change_of_outputs": responses.change_of_outputs,
        },
    )


def more_steps_are_weaker(responses: Responses) -> Flag | None:
    """Flags one step that breaks at least 2 % more examples than many steps."""
    if not responses.observed:
        return None
    one, many = responses.share * float(responses.standing_after_one.mean()), responses.accuracies[0]
    if many <= one + 0.02:
        return None
    return Flag(
        "more_steps_are_weaker",
        "One step breaks more than many: the iterations are stuck where the gradient is masked.",
        {"accuracy_one_step": one, "accuracy_many_steps": many},
    )


def budget_without_effect(responses: Responses) -> Flag | None:
    """Flags an accuracy that rises by 2 % with the budget, or four times the budget that raises no example's loss."""
    if not responses.observed:
        return None
    once, twice, four_times = responses.accuracies
    rises = max(twice - once, four_times - twice) > 0.02
    without_effect = once > 0.1 and not (responses.losses[2] > responses.losses[0]).any()
    if not rises and not (without_effect and four_times >= once):
        return None
    return Flag(
        "budget_without_effect",
        "A larger budget does not lower the accuracy: the attacks do not use it.",
        {"radii": list(responses.radii[:3]), "accuracies": [once, twice, four_times]},
    )


def unbounded_attack_fails(responses: Responses) -> Flag | None:
    """Flags examples, more than 5 %, that stand at every radius, the one that allows nearly anything included."""
    if not responses.observed:
        return None
    accuracy = responses.share * float(np.all(responses.standing, axis=0).mean())
    if accuracy <= 0.05:
        return None
    return Flag(
        "unbounded_attack_fails",
        "An attack that may do nearly anything does not bring the accuracy to zero: the attacks fail.",
        {"radius": responses.radii[-1], "accuracy_on_correct": accuracy},
    )


RESPONSE_FLAGS = (zero_gradients, identity_changes_the_loss, more_steps_are_weaker, budget_without_effect)
CLASS_FLAGS = (*RESPONSE_FLAGS, unbounded_attack_fails)
"""For one class per image. Under other criteria an image may be right whatever is done to it."""
