"""The diagnosis of a model: model passes of its own that look for red flags.

References:
    See `deformreg.evaluation.flags`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deformreg.attacks.attack import Attack, LogitsFn, as_argument, row_keys
from deformreg.attacks.attack import Examples as Rows
from deformreg.attacks.pgd import pgd
from deformreg.attacks.search import Keep, differentiate
from deformreg.balls import linf
from deformreg.evaluation.flags import (
    BATCH,
    BUDGET,
    IDENTITY,
    NOT_FINITE,
    PROBABILITIES,
    RANDOMNESS,
    STEPS,
    UNBOUNDED,
    ZERO_GRADIENTS,
    Flag,
)
from deformreg.perturbations import Perturbation, flow

HostArray = np.ndarray[Any, Any]

UNDERFLOW = 88.0  # nats; exp(-88) is the smallest normal float32


class Probes(NamedTuple):
    """What a diagnosis runs in a family of perturbations, jitted.

    Attributes:
        family: of perturbations.
        at_identity: ``(logits_fn, rows) -> (size of the loss's gradient [n], change of the logits [n, classes], change
            of the images)``.
        standing: ``(logits_fn, radius, rows, key, num_steps) -> bool[n]``: whom sign steps do not break.
    """

    family: Perturbation
    at_identity: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
    standing: Callable[..., jax.Array]


def compile_probes(make: Callable[[Any], Perturbation]) -> Callable[[Any], Probes]:
    """Probes of a family made from a suite's radius, which is traced: they compile once per shape of the rows.

    Args:
        make: from the radius to the family.

    Returns:
        From the radius to the probes.
    """

    def at_identity(at: Any, function: Any, rows: Rows) -> tuple[jax.Array, jax.Array, jax.Array]:
        family = make(at)
        zeros = family.init(rows.images)
        _, gradient, logits = differentiate(function, family, "cross_entropy", rows, zeros)
        leaves = [jnp.max(jnp.abs(g), axis=tuple(range(1, g.ndim))) for g in jax.tree.leaves(gradient)]
        size = jnp.max(jnp.stack(leaves), axis=0)
        unchanged = family.apply(zeros, rows.images)
        return size, function(rows.images) - logits, jnp.max(jnp.abs(unchanged - rows.images))

    def standing(at: Any, function: Any, radius: Any, rows: Rows, key: jax.Array, count: int) -> jax.Array:
        family = make(at)
        # Unit parameters times a traced radius: one compilation for all budgets.
        scaled = family._replace(
            apply=lambda params, images: family.apply(_times(params, radius), images),
            constrain=lambda params, images: _times(family.constrain(_times(params, radius), images), 1 / radius),
            pullback=None,
            field=None,
        )
        length = 1.0 if count == 1 else 2.5 / count
        keep: Keep = "last" if count == 1 else "any"
        attack = pgd(ball=linf(1.0), num_steps=count, step_size=length, perturbation=scaled, keep=keep)
        return ~attack.run(function, rows.images, rows.labels, key).success

    identity, stands = jax.jit(at_identity), jax.jit(standing, static_argnums=5)
    return lambda at: Probes(make(at), partial(identity, at), partial(stands, at))


def diagnose(
    logits_fn: LogitsFn, images: HostArray, labels: HostArray, attacks: Sequence[Attack], *, key: jax.Array
) -> tuple[tuple[Flag, ...], int]:
    """Looks for the flags that need model passes of their own.

    Args:
        logits_fn: ``images -> logits[n, classes]``.
        images: float[n, h, w, c], a few; 128 by convention.
        labels: int[n].
        attacks: the family of the gradient attack with the largest budget is what is examined, in the largest cube
            inside its ball; a pixel's flow if there is none.
        key: a JAX random key.

    Returns:
        ``(flags, model_calls)``.
    """
    return compile_diagnosis(lambda radius: attacks)(None, logits_fn, images, labels, key=key)


def compile_diagnosis(
    make: Callable[[Any], Iterable[Attack]],
) -> Callable[..., tuple[tuple[Flag, ...], int]]:
    """`diagnose` compiled once, for models and budgets that are diagnosed again and again.

    Args:
        make: from a radius, traced ones too, to the attacks.

    Returns:
        ``(radius, logits_fn, images, labels, *, key) -> (flags, model_calls)``.
    """

    @cache
    def probes(number: int | None) -> Callable[[Any], Probes]:
        return compile_probes(lambda radius: _family(tuple(make(radius)), number))

    def run(
        radius: Any, logits_fn: LogitsFn, images: HostArray, labels: HostArray, *, key: jax.Array
    ) -> tuple[tuple[Flag, ...], int]:
        images, labels = np.asarray(images), np.asarray(labels)
        flags, logits = check_outputs(logits_fn, images)
        calls = 7 * len(images)
        correct = (logits.argmax(axis=1) == labels) & np.isfinite(logits).all(axis=1)
        if not correct.any():
            return flags, calls
        # Padded by repetition, so that every model of a comparison is examined in one shape.
        chosen = np.resize(np.flatnonzero(correct), len(images))
        weights = correct[chosen] & (np.arange(len(chosen)) < correct.sum())
        rows = Rows(jnp.asarray(images[chosen]), jnp.asarray(labels[chosen]), row_keys(key, jnp.arange(len(chosen))))
        number, size = _examined(tuple(make(radius)), images)
        examined = probes(number)(radius)
        more, spent = check_gradients(logits_fn, rows, weights, examined)
        flags, calls = (*flags, *more), calls + spent
        more, spent = check_monotone(logits_fn, rows, weights, examined, size, key)
        return (*flags, *more), calls + spent

    return run


def _examined(attacks: Sequence[Attack], images: HostArray) -> tuple[int | None, float]:
    """The number of the attack that is examined, and the radius of a cube in its family; a pixel if there is none."""
    sizes = [_half_side(attack, images) for attack in attacks]
    largest = max(sizes, default=0.0)
    return (sizes.index(largest), largest) if largest > 0 else (None, 1.0)


def _half_side(attack: Attack, images: HostArray) -> float:
    """Half the side of the largest cube inside a gradient attack's ball; 0 for no bound, or one of another shape."""
    radius, norm = attack.budget.radius, attack.budget.norm
    if not attack.uses_gradients or not isinstance(radius, (int, float)):
        return 0.0
    leaves = jax.tree.leaves(jax.eval_shape(attack.perturbation.init, images[:1]))
    squared_corners = {
        "linf": 1,
        "linf of the raw field": 1,
        "l2": sum(leaf.size for leaf in leaves),
        "pixelwise_l2": max(leaf.shape[-1] for leaf in leaves),
    }
    return radius / math.sqrt(squared_corners[norm]) if norm in squared_corners else 0.0


def _family(attacks: Sequence[Attack], number: int | None) -> Perturbation:
    if number is None:
        return flow()
    family = attacks[number].perturbation
    return family.unbounded or family  # budgets larger than its bound are tried


def check_outputs(logits_fn: LogitsFn, images: HostArray) -> tuple[tuple[Flag, ...], HostArray]:
    """What the model's outputs show: randomness, dependence on the batch, probabilities, values that are not finite.

    Args:
        logits_fn: called as it is, outside `jit`, seven times.
        images: float[n, h, w, c].

    Returns:
        ``(flags, logits)``.
    """
    flags: list[Flag] = []
    first = np.asarray(logits_fn(jnp.asarray(images)), np.float64)
    others = [np.asarray(logits_fn(jnp.asarray(images)), np.float64) for _ in range(4)]
    scale = max(_largest(first), 1e-12)
    change = max(_largest(other - first) for other in others)
    if change > 1e-5 * scale:
        flags.append(
            Flag(
                RANDOMNESS,
                "Five calls on the same images gave different outputs: average over the randomness, or switch it off.",
                {"largest_change": change, "largest_output": scale},
            )
        )
    else:
        reverse = np.asarray(logits_fn(jnp.asarray(images[::-1])), np.float64)[::-1]
        same = np.asarray(logits_fn(jnp.asarray(np.repeat(images[:1], len(images), axis=0))), np.float64)[0]
        change = max(_largest(reverse - first), _largest(same - first[0]))
        if change > 1e-3 * scale:
            flags.append(
                Flag(
                    BATCH,
                    "An image's output depends on the others of its batch: is the model in inference mode?",
                    {"largest_change": change, "largest_output": scale},
                )
            )
    if not np.isfinite(first).all():
        count = int((~np.isfinite(first)).any(axis=1).sum())
        flags.append(Flag(NOT_FINITE, "Clean logits are not finite: nothing can be predicted.", {"examples": count}))
    elif (first >= 0).all() and np.abs(first.sum(axis=1) - 1).max() < 1e-3:
        flags.append(
            Flag(
                PROBABILITIES,
                "Outputs are probabilities, not logits: their losses saturate and gradient attacks fail.",
                {"smallest_output": float(first.min()), "largest_row_sum": float(first.sum(axis=1).max())},
            )
        )
    return tuple(flags), first


def _largest(values: HostArray) -> float:
    """The largest size of the finite values."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def check_gradients(
    logits_fn: LogitsFn, rows: Rows, weights: HostArray, probes: Probes
) -> tuple[tuple[Flag, ...], int]:
    """At the identity: whether gradients are exactly zero, and whether the loss there is the clean one.

    Args:
        logits_fn: see `diagnose`.
        rows: correctly classified examples.
        weights: bool[n], which rows count.
        probes: of a family.

    Returns:
        ``(flags, model_calls)``.
    """
    size, difference, moved = (np.asarray(value) for value in probes.at_identity(as_argument(logits_fn), rows))
    flags: list[Flag] = []
    logits = np.asarray(logits_fn(rows.images), np.float64)
    right = np.arange(logits.shape[1]) == np.asarray(rows.labels)[:, None]
    margins = logits.max(axis=1, where=right, initial=-np.inf) - logits.max(axis=1, where=~right, initial=-np.inf)
    # Beyond this margin every other class has probability zero in float32, and what is left of the loss's gradient
    # is rounding.
    zero = float(((size == 0) | (margins > UNDERFLOW))[weights].mean())
    if zero > 0.05:
        flags.append(
            Flag(
                ZERO_GRADIENTS,
                "The loss's gradient is zero, or not finite, on clean examples: a step function, logits too large for "
                "it, or a root or logarithm at zero.",
                {"share_of_examples": zero, "median_margin": float(np.median(margins[weights]))},
            )
        )
    change = float(np.max(np.abs(difference[weights])))
    scale = max(float(np.max(np.abs(logits))), 1e-12)
    if moved > 0 or change > 1e-3 * scale:
        flags.append(
            Flag(
                IDENTITY,
                "The zero perturbation changes the images or the outputs: attack and evaluation see different models.",
                {"largest_change_of_images": float(moved), "largest_change_of_outputs": change},
            )
        )
    return tuple(flags), 3 * len(size)


def check_monotone(
    logits_fn: LogitsFn, rows: Rows, weights: HostArray, probes: Probes, radius: float, key: jax.Array
) -> tuple[tuple[Flag, ...], int]:
    """Whether larger budgets and more steps are stronger, and an unbounded attack breaks everything.

    Args:
        logits_fn: see `diagnose`.
        rows: correctly classified examples.
        weights: bool[n], which rows count.
        probes: of a family.
        radius: the budget that is evaluated, per component.
        key: a JAX random key.

    Returns:
        ``(flags, model_calls)``.
    """
    height, width = rows.images.shape[1:3]
    spread = float(jnp.max(rows.images) - jnp.min(rows.images))
    unbounded = max(height, width) / 2 if probes.family.field is not None else max(spread, 1e-3)
    steps = 20
    stands = partial(probes.standing, as_argument(logits_fn))
    radii = (radius, 2 * radius, 4 * radius, max(unbounded, 4 * radius))
    one = float(np.asarray(stands(radius, rows, key, 1))[weights].mean())
    masks = [np.asarray(stands(size, rows, key, steps))[weights] for size in radii]
    many, twice, four = (float(mask.mean()) for mask in masks[:3])
    beyond = float(np.all(masks, axis=0).mean())
    flags = [*_steps(one, many, steps), *_budgets(radius, many, twice, four), *_unbounded(radii[-1], beyond)]
    return tuple(flags), (2 + len(radii) * (steps + 1)) * len(weights)


def _times(params: Any, size: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf * jnp.asarray(size, leaf.dtype), params)


def _steps(one: float, many: float, steps: int) -> tuple[Flag, ...]:
    if many <= one + 0.02:
        return ()
    return (
        Flag(
            STEPS,
            "One step breaks more than many: the iterations are stuck where the gradient is masked.",
            {"accuracy_one_step": one, f"accuracy_{steps}_steps": many},
        ),
    )


def _budgets(radius: float, many: float, twice: float, four: float) -> tuple[Flag, ...]:
    rises = max(twice - many, four - twice) > 0.02
    without_effect = four >= many and many > 0.1
    if not rises and not without_effect:
        return ()
    return (
        Flag(
            BUDGET,
            "A larger budget does not lower the accuracy: the attacks do not use it.",
            {"radii": [radius, 2 * radius, 4 * radius], "accuracies": [many, twice, four]},
        ),
    )


def _unbounded(radius: float, accuracy: float) -> tuple[Flag, ...]:
    if accuracy <= 0.05:
        return ()
    return (
        Flag(
            UNBOUNDED,
            "An attack that may do nearly anything does not bring the accuracy to zero: the attacks fail.",
            {"radius": radius, "accuracy_on_correct": accuracy},
        ),
    )
