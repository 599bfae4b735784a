"""Red flags in a model's gradients at the clean images, and in short attacks at several budgets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from deformreg.attacks.attack import Attack, Examples
from deformreg.attacks.pgd import pgd
from deformreg.attacks.search import differentiate
from deformreg.balls import linf
from deformreg.evaluation.flags.flag import Flag
from deformreg.evaluation.rows import HostArray
from deformreg.perturbations import Perturbation

STEPS = 20
UNDERFLOW = 88.0  # nats; exp(-88) is about the smallest normal float32
RESPONSE_CALLS = 3 + 2 + 4 * (STEPS + 1)  # at the zero perturbation, one step, and many steps at four radii


class Responses(NamedTuple):
    """How correctly classified examples respond to perturbations of one family.

    Attributes:
        gradients: float[n], the largest component of the loss's gradient at the zero perturbation.
        margins: float[n], the label's logit minus the largest other; zero for other criteria than one class per image.
        largest_logit: the largest absolute logit.
        change_of_images: the largest change that the zero perturbation makes to the images.
        change_of_outputs: and to the logits.
        radii: the examined budget, twice, four times that, and one that allows nearly anything; per component.
        standing: bool[4, n], at each radius, the examples that `STEPS` sign steps do not break.
        standing_after_one: bool[n], at the first radius, the examples that one step does not break.
    """

    gradients: HostArray
    margins: HostArray
    largest_logit: float
    change_of_images: float
    change_of_outputs: float
    radii: tuple[float, float, float, float]
    standing: HostArray
    standing_after_one: HostArray

    @property
    def accuracies(self) -> tuple[float, float, float]:
        """The share of the examples that stands at the first three radii."""
        once, twice, four_times = (float(mask.mean()) for mask in self.standing[:3])
        return once, twice, four_times


Observe = Callable[[Any, Partial, Examples, int, float, int], Responses]
"""``(suite_radius, logits_fn, examples, count, radius, batch_size) -> Responses``: the examples are a multiple of
`batch_size`, the first `count` are observed; `radius` is the examined budget."""


def compile_responses(make: Callable[[Any], Perturbation]) -> Observe:
    """Jits the observation of a family, which is made from a suite's (traced) radius: it compiles once per shape."""

    @jax.jit
    def at_identity(at: Any, logits_fn: Partial, rows: Examples) -> tuple[jax.Array, ...]:
        family = make(at)
        zeros = family.init(rows.images)
        _, gradient, logits, _ = differentiate(logits_fn, family, "cross_entropy", rows, zeros)
        leaves = [jnp.max(jnp.abs(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(gradient)]
        moved = jnp.abs(family.apply(zeros, rows.images) - rows.images).reshape(len(rows.images), -1).max(axis=1)
        return jnp.max(jnp.stack(leaves), axis=0), logits_fn(rows.images) - logits, moved

    def standing(at: Any, logits_fn: Partial, rows: Examples, radius: Any, num_steps: int) -> jax.Array:
        family = make(at)
        # Unit parameters times a traced radius: one compilation for all budgets.
        scaled = family._replace(
            apply=lambda params, images: family.apply(_times(params, radius), images),
            constrain=lambda params, images: _times(family.constrain(_times(params, radius), images), 1 / radius),
            pullback=None,
            field=None,
        )
        attack = pgd(
            ball=linf(1.0), num_steps=num_steps, step_size=1.0 if num_steps == 1 else 2.5 / num_steps,
            perturbation=scaled, keep="last" if num_steps == 1 else "any",
        )  # fmt: skip
        return ~attack.run(logits_fn, rows.images, rows.labels, rows.keys, criterion=rows.criterion).success

    stands = jax.jit(standing, static_argnums=4)

    def observe(at: Any, logits_fn: Partial, rows: Examples, count: int, radius: float, batch_size: int) -> Responses:
        def in_batches(function: Callable[[Examples], Any]) -> Any:
            starts = range(0, len(rows.labels), batch_size)
            parts = [function(jax.tree.map(lambda leaf, a=a: leaf[a : a + batch_size], rows)) for a in starts]
            return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves])[:count], *parts)

        def standing_at(size: float, num_steps: int) -> HostArray:
            mask: HostArray = in_batches(lambda batch: stands(at, logits_fn, batch, size, num_steps))
            return mask

        gradients, change, moved = in_batches(lambda batch: at_identity(at, logits_fn, batch))
        logits = in_batches(lambda batch: logits_fn(batch.images)).astype(np.float64)
        margins = _margins(logits, np.asarray(rows.labels)[:count]) if rows.criterion.one_class else np.zeros(count)
        # A flow of half the image reaches any pixel; other families may use the whole range of the images.
        spread = float(jnp.max(rows.images) - jnp.min(rows.images))
        anything = max(rows.images.shape[1:-1]) / 2 if make(at).field is not None else max(spread, 1e-3)
        radii = (radius, 2 * radius, 4 * radius, max(anything, 4 * radius))
        return Responses(
            gradients,
            margins,
            max(float(np.max(np.abs(logits))), 1e-12),
            float(np.max(moved)),
            float(np.max(np.abs(change))),
            radii,
            np.stack([standing_at(size, STEPS) for size in radii]),
            standing_at(radius, 1),
        )

    return observe


def _margins(logits: HostArray, labels: HostArray) -> HostArray:
    """The label's logit minus the largest other."""
    right = np.arange(logits.shape[1]) == labels[:, None]
    own, best = (logits.max(axis=1, where=mask, initial=-np.inf) for mask in (right, ~right))
    margins: HostArray = own - best
    return margins


def _times(params: Any, size: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf * jnp.asarray(size, leaf.dtype), params)


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
    # Beyond this margin every other class has probability zero in float32, and what is left of the loss's gradient
    # is rounding.
    share = float(((responses.gradients == 0) | (responses.margins > UNDERFLOW)).mean())
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
    if responses.change_of_images == 0 and responses.change_of_outputs <= 1e-3 * responses.largest_logit:
        return None
    return Flag(
        "identity_changes_the_loss",
        "The zero perturbation changes the images or the outputs: attack and evaluation see different models.",
        {
            "largest_change_of_images": responses.change_of_images,
            "largest_change_of_outputs": responses.change_of_outputs,
        },
    )


def more_steps_are_weaker(responses: Responses) -> Flag | None:
    """Flags one step that breaks at least 2 % more examples than many steps."""
    one, many = float(responses.standing_after_one.mean()), responses.accuracies[0]
    if many <= one + 0.02:
        return None
    return Flag(
        "more_steps_are_weaker",
        "One step breaks more than many: the iterations are stuck where the gradient is masked.",
        {"accuracy_one_step": one, f"accuracy_{STEPS}_steps": many},
    )


def budget_without_effect(responses: Responses) -> Flag | None:
    """Flags an accuracy that rises by 2 % with the budget, or that four times the budget does not lower."""
    once, twice, four_times = responses.accuracies
    rises = max(twice - once, four_times - twice) > 0.02
    without_effect = four_times >= once and once > 0.1
    if not rises and not without_effect:
        return None
    return Flag(
        "budget_without_effect",
        "A larger budget does not lower the accuracy: the attacks do not use it.",
        {"radii": list(responses.radii[:3]), "accuracies": [once, twice, four_times]},
    )


def unbounded_attack_fails(responses: Responses) -> Flag | None:
    """Flags examples, more than 5 %, that stand at every radius, the one that allows nearly anything included."""
    accuracy = float(np.all(responses.standing, axis=0).mean())
    if accuracy <= 0.05:
        return None
    return Flag(
        "unbounded_attack_fails",
        "An attack that may do nearly anything does not bring the accuracy to zero: the attacks fail.",
        {"radius": responses.radii[-1], "accuracy_on_correct": accuracy},
    )


RESPONSE_FLAGS = (
    zero_gradients,
    identity_changes_the_loss,
    more_steps_are_weaker,
    budget_without_effect,
    unbounded_attack_fails,
)
