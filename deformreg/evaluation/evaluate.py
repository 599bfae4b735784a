"""Robust accuracy of any logits function against a suite of attacks, worst case per example.

Rules that make the number mean something: accuracies are over *all* examples, so a clean error counts as broken; an
attack is run on the examples still standing; what it claims is checked by a fresh forward pass, and whether it kept
its budget and the images' range; symptoms of a broken evaluation are reported as `flags` beside the number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from deformreg import _checks
from deformreg.attacks.attack import Attack, LogitsFn, as_argument, class_indices
from deformreg.evaluation.diagnosis import compile_diagnosis
from deformreg.evaluation.flags import Flag, flags_from_outcomes
from deformreg.evaluation.outcomes import AttackOutcome, Collect, HostArray, Progress, Setting, face, padded, predict
from deformreg.evaluation.rows import compile_attack
from deformreg.statistics import wilson_interval


class Evaluation(NamedTuple):
    """The result of `evaluate`: plain data. `deformreg.evaluation.reports.to_json` writes it.

    Attributes:
        examples: how many.
        clean_accuracy: share of examples classified right.
        robust_accuracy: share that is right and that no attack broke: the worst case per example.
        robust_interval: Wilson's 95 % interval of it.
        attacks: in the order run.
        flags: the red flags raised.
        model_calls: of everything, the clean pass and the diagnosis included.
        seconds: of everything, compiling included.
        independent: whether every attack faced every correct example.
        correct_mask: bool[n], who is classified right.
        standing_mask: bool[n], of these, whom no attack broke.
    """

    examples: int
    clean_accuracy: float
    robust_accuracy: float
    robust_interval: tuple[float, float]
    attacks: tuple[AttackOutcome, ...]
    flags: tuple[Flag, ...]
    model_calls: int
    seconds: float
    independent: bool
    correct_mask: HostArray
    standing_mask: HostArray


Suite = Iterable[Attack] | Callable[[Any], Iterable[Attack]]
"""Attacks of different names, or a function that makes them for a radius, such as those of `deformreg.evaluation.suites`."""

Evaluator = Callable[..., Evaluation]


def evaluate(
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    attacks: Iterable[Attack],
    *,
    batch_size: int = 128,
    key: jax.Array,
    targets: Any = None,
    image_range: tuple[float, float] | None = None,
    independent: bool = False,
    diagnosis: bool = True,
    refill: bool = True,
    progress: Callable[[Progress], None] | None = None,
    collect: Collect | None = None,
) -> Evaluation:
    """Attacks a model and says what stands.

    Attacks run in the given order, each on the correctly classified examples that still stand; an example broken
    without gradients is left to the gradient attacks after it all the same, for a gradient attack that fails there
    is a red flag. Batches have one shape; the rows of examples that are through are given to waiting ones, and since
    rows have keys of their own the result does not depend on it.

    Args:
        logits_fn: ``images -> logits[n, classes]`` in inference mode: logits, not probabilities, and every row
            dependent on its own image alone. Give a ``jax.tree_util.Partial(apply, params)`` to have the weights
            passed as arguments instead of compiled in.
        images: float[n, h, w, c] in the range the model expects.
        labels: int[n].
        attacks: of different names, see `deformreg.evaluation.suites`.
        batch_size: rows per batch; best at most an eighth of the number of examples, since rows idle at the end.
        key: a JAX random key. Attack k (in order) draws for example i from ``fold_in(fold_in(key, k), i)``.
        targets: int[n], classes to reach; None for untargeted attacks. With targets, `robust_accuracy` counts the
            examples that are right and did not reach their target; one whose target is its label is not attacked.
        image_range: what attacked images must lie in; None is the range of `images`, with zero, which boundaries
            bring in.
        independent: run every attack on every correctly classified example, so that their accuracies compare.
        diagnosis: also look for red flags that need passes of their own, on up to 128 examples.
        refill: False replaces a batch only as a whole.
        progress: called with a `Progress` whenever examples are through.
        collect: called then with the `Attack`, the examples' indices int[k] and their `AttackResult` in NumPy arrays,
            to keep deformed images or flows. These are claims: `broken_mask` says which the fresh check confirmed.

    Returns:
        The evaluation.

    Raises:
        TypeError: integer images, floating labels, or a `batch_size` that is not an integer.
        ValueError: no examples, images that are not finite, no attack, two attacks of one name, or shapes that do not
            fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import linf
        >>> from deformreg.attacks import pgd
        >>> edge = lambda x: jnp.stack([x[:, 0, 1, 0], 0.75 - x[:, 0, 1, 0]], axis=1)  # class 0 where bright
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1) / 4
        >>> images, labels = jnp.concatenate([ramp, ramp + 2]), jnp.array([1, 0])
        >>> attacks = [pgd(ball=linf(0.9), num_steps=5)]
        >>> evaluate(edge, images, labels, attacks, key=jax.random.key(0), diagnosis=False).robust_accuracy
        0.5
        >>> flows = {}
        >>> keep = lambda attack, indices, result: flows.update(zip(indices.tolist(), result.params))
        >>> _ = evaluate(edge, images, labels, attacks, key=jax.random.key(0), diagnosis=False, collect=keep)
        >>> sorted(flows), flows[0].shape
        ([0, 1], (1, 4, 2))

    References:
        Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
        Attacks", ICML 2020 (sequence of attacks, fresh check, flags).
        Carlini et al., "On Evaluating Adversarial Robustness", arXiv 1902.06705.
    """
    run = evaluator(
        attacks,
        batch_size=batch_size,
        image_range=image_range,
        independent=independent,
        diagnosis=diagnosis,
        refill=refill,
    )
    return run(logits_fn, images, labels, key=key, targets=targets, progress=progress, collect=collect)


def evaluator(
    attacks: Suite,
    *,
    batch_size: int = 128,
    image_range: tuple[float, float] | None = None,
    independent: bool = False,
    diagnosis: bool = True,
    refill: bool = True,
) -> Evaluator:
    """`evaluate` with the attacks compiled once, for models and budgets that are evaluated again and again.

    Args:
        attacks: see `evaluate`, as are the others; or a function from a radius to attacks, such as
            `deformreg.evaluation.suites.standard`, which is called with traced radii too.
        batch_size: rows per batch.
        image_range: what attacked images must lie in.
        independent: whether every attack faces every correct example.
        diagnosis: whether to look for red flags that need passes of their own.
        refill: whether rows are refilled.

    Returns:
        ``(logits_fn, images, labels, *, key, radius=None, broken=None, targets=None, progress=None, collect=None) ->
        Evaluation``.
        Called with the same function, or with ``Partial``s of the same function and new weights, and with whatever
        radius, it compiles nothing new for images of one shape. `radius` is the argument of a function from radius to
        attacks; `broken` (bool[n]) says who is known to be broken and left out.

    Raises:
        TypeError: `batch_size` is not an integer. When run: a radius that no function takes, or none for one.
        ValueError: no attack, or two of one name.

    Example:
        >>> from deformreg import suites
        >>> run = evaluator(suites.quick, batch_size=64)  # then run(logits_fn, images, labels, radius=0.5, key=key)
    """
    batch_size = _checks.count("batch_size", batch_size)
    make = attacks if callable(attacks) else _constant(tuple(attacks))
    names = [attack.name for attack in make(1.0)]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"attacks must be one or more of different names, got {names}")
    compiled = [compile_attack(partial(_member, make, at)) for at in range(len(names))]
    diagnose = compile_diagnosis(make)
    forward = jax.jit(lambda function, images: function(images))

    def run(
        logits_fn: LogitsFn,
        images: Any,
        labels: Any,
        *,
        key: jax.Array,
        radius: float | None = None,
        broken: Any = None,
        targets: Any = None,
        progress: Callable[[Progress], None] | None = None,
        collect: Collect | None = None,
    ) -> Evaluation:
        started = time.perf_counter()
        if (radius is None) == callable(attacks):
            raise TypeError(f"radius must be given where the attacks are a function of it, and only there: {radius}")
        images = _checks.images_on_host(images)
        count = images.shape[0]
        if count == 0:
            raise ValueError(f"images must hold at least one example, got shape {images.shape}")
        labels = np.asarray(class_indices("labels", labels, count))
        targets = None if targets is None else np.asarray(class_indices("targets", targets, count))
        own_range = _range(images)
        setting = Setting(
            as_argument(logits_fn), forward, images, labels, targets, min(batch_size, count), refill, progress,
            collect, own_range if image_range is None else image_range,
        )  # fmt: skip
        predicted = predict(setting, images)
        correct = predicted == labels
        begun = correct if broken is None else correct & ~np.asarray(broken)
        attackable = begun if targets is None else begun & (targets != labels)
        suite = tuple(make(radius))
        outcomes: list[AttackOutcome] = []
        for number, (attack, at_radius) in enumerate(zip(suite, compiled, strict=True)):
            attacked = attackable & ~_fallen(outcomes, count, independent, attack.uses_gradients)
            before = np.zeros(count, bool) if independent else _fallen(outcomes, count, False, False)
            attack_key = jax.random.fold_in(key, number)
            outcomes.append(face(setting, attack, at_radius(radius), attacked, begun & ~before, attack_key))
        standing = begun & ~_fallen(outcomes, count, False, False)
        flags = flags_from_outcomes(outcomes)
        calls = padded(count, setting.batch_size) + sum(outcome.model_calls for outcome in outcomes)
        if diagnosis:
            last_key = jax.random.fold_in(key, len(suite))
            found, spent = diagnose(radius, logits_fn, images[:128], labels[:128], key=last_key)
            flags, calls = (*flags, *found), calls + spent
        return Evaluation(
            count,
            float(correct.mean()),
            float(standing.mean()),
            wilson_interval(int(standing.sum()), count),
            tuple(outcomes),
            flags,
            calls,
            time.perf_counter() - started,
            independent,
            correct,
            standing,
        )

    return run


def _range(images: HostArray) -> tuple[float, float]:
    """The images' range, with zero."""
    low, high = float(images.min()), float(images.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        (bad,) = np.nonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
        raise ValueError(
            f"images must be finite, got NaN or infinity in {len(bad)}, the first at index {bad[0]}: leave these out"
        )
    return min(0.0, low), max(0.0, high)


def _constant(suite: tuple[Attack, ...]) -> Callable[[Any], tuple[Attack, ...]]:
    return lambda radius: suite


def _member(make: Callable[[Any], Iterable[Attack]], at: int, radius: Any) -> Attack:
    return tuple(make(radius))[at]


def _fallen(outcomes: Sequence[AttackOutcome], count: int, independent: bool, uses_gradients: bool) -> HostArray:
    """Who need not be attacked any more, by an attack that does or does not use gradients."""
    fallen = np.zeros(count, bool)
    if independent:
        return fallen
    for outcome in outcomes:
        if outcome.uses_gradients or not uses_gradients:
            fallen |= outcome.broken_mask
    return fallen
