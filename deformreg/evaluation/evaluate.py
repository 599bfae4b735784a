"""Robust accuracy of any logits function against a suite of attacks, worst case per example.

Accuracies are over *all* examples, so a clean error counts as broken. An attack runs on the examples that still stand.
A fresh forward pass checks its claims; the budget and the image range are checked as well. Symptoms of a broken
evaluation are reported as `flags`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import jax
import numpy as np
from numpy.typing import ArrayLike

from deformreg import _checks
from deformreg._families import check_layout
from deformreg.attacks.attack import Attack, LogitsFn, as_argument
from deformreg.evaluation.flags import OUTCOME_FLAGS, Flag, compile_diagnosis, raised
from deformreg.evaluation.outcomes import (
    RANGE_SLACK,
    AttackOutcome,
    Collect,
    ProgressCallback,
    Setting,
    padded,
    predict,
    run_attack,
)
from deformreg.evaluation.rows import Compiled, Data, HostArray, check_alike, compile_attack
from deformreg.evaluation.suites import Suite, fixed
from deformreg.statistics import wilson_interval


class Evaluation(NamedTuple):
    """The result of `evaluate`: plain data. `deformreg.evaluation.reports.to_json` writes it.

    Attributes:
        examples: number of examples.
        clean_accuracy: share of examples that are classified correctly.
        robust_accuracy: share that is classified correctly and not broken by any attack.
        robust_interval: its 95 % Wilson interval.
        attacks: their outcomes, in the order run.
        flags: the red flags raised.
        model_calls: of everything, the clean pass and the diagnosis included.
        seconds: of everything, compiling included.
        independent: whether every attack faced every correctly classified example.
        correct_mask: bool[n], classified correctly.
        standing_mask: bool[n], classified correctly and not broken by any attack.
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


class Evaluator(Protocol):
    """A compiled evaluation. Its arguments are those of `evaluate`, and two more.

    `radius` is the argument of a suite, to be given for a suite and only then. `broken` (bool[n]) marks examples that
    are known to be broken; they are not attacked.
    """

    def __call__(
        self,
        logits_fn: LogitsFn,
        images: ArrayLike,
        labels: ArrayLike,
        *,
        key: jax.Array,
        radius: float | None = None,
        broken: ArrayLike | None = None,
        targets: ArrayLike | None = None,
        progress: ProgressCallback | None = None,
        collect: Collect | None = None,
    ) -> Evaluation: ...


def evaluate(
    logits_fn: LogitsFn,
    images: ArrayLike,
    labels: ArrayLike,
    attacks: Iterable[Attack],
    *,
    batch_size: int = 128,
    key: jax.Array,
    targets: ArrayLike | None = None,
    image_range: tuple[float, float] | None = None,
    independent: bool = False,
    diagnosis: bool = True,
    refill: bool = True,
    progress: ProgressCallback | None = None,
    collect: Collect | None = None,
) -> Evaluation:
    """Attacks a model and reports which examples stand.

    Attacks run in the given order, each on the correctly classified examples that still stand. Gradient attacks also
    run on examples that only attacks without gradients broke: failing there is a red flag. Batches have one shape.
    Waiting examples take the rows of finished ones; every example has its own key, so this changes no result.

    Args:
        logits_fn: ``images -> logits[n, classes]`` in inference mode: logits, not probabilities, and every row
            dependent on its own image alone. Give a ``jax.tree_util.Partial(apply, params)`` to have the weights
            passed as arguments instead of compiled in.
        images: float[n, h, w, c] in the range the model expects.
        labels: int[n].
        attacks: of different names, for example ``deformreg.evaluation.suites.standard(0.5)``.
        batch_size: rows per batch, the only number that the model sees, or the number of examples if that is smaller;
            best at most an eighth of them, since rows idle at the end.
        key: a JAX random key. Attack k (in order) draws for example i from ``fold_in(fold_in(key, k), i)``.
        targets: int[n], classes to reach; None for untargeted attacks. With targets, `robust_accuracy` counts the
            examples that are classified correctly and did not reach their target; an example whose target is its label
            is not attacked.
        image_range: the range that attacked images must keep; None is the range of `images`, extended to zero, which
            boundaries bring in.
        independent: run every attack on every correctly classified example, so that their accuracies compare.
        diagnosis: also look for red flags that need model passes of their own, on up to 128 examples, before the
            attacks.
        refill: False replaces a batch only as a whole.
        progress: called with a `Progress` whenever examples are finished.
        collect: called then with the `Attack`, the examples' indices int[k] and their `AttackResult` in NumPy arrays,
            to keep deformed images or flows. These are claims: `broken_mask` says which the fresh check confirmed.

    Returns:
        The evaluation.

    Raises:
        TypeError: integer images, floating labels, a `batch_size` that is not an integer, no random key, attacks that
            are none, or a `logits_fn` that does not return one array of floating-point logits.
        ValueError: no examples, images that are not finite, leave `image_range` or look like [n, c, h, w], labels
            outside the classes, no attack, two attacks of one name, an attack with one radius per example, or shapes
            that do not fit. All before the first attack.

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
    attacks: Suite | Iterable[Attack],
    *,
    batch_size: int = 128,
    image_range: tuple[float, float] | None = None,
    independent: bool = False,
    diagnosis: bool = True,
    refill: bool = True,
) -> Evaluator:
    """Compiles `evaluate` once, for models and budgets that are evaluated again and again.

    Args:
        attacks: a suite, for example `deformreg.evaluation.suites.standard`, or attacks as in `evaluate`.
        batch_size: see `evaluate`, as for the others.
        image_range: the range that attacked images must keep.
        independent: whether every attack runs on every correctly classified example.
        diagnosis: whether to look for red flags that need model passes of their own.
        refill: whether waiting examples take the rows of finished ones.

    Returns:
        A function of the model and the examples. It compiles nothing new for images of one shape when it is called
        with the same function, or with ``Partial``s of the same function and new weights, at any radius.

    Raises:
        TypeError: `batch_size` is not an integer. When run: no radius for a suite, or a radius for attacks.
        ValueError: no attack, or two of one name.

    Example:
        >>> from deformreg.evaluation import suites
        >>> run = evaluator(suites.quick, batch_size=64)  # then run(logits_fn, images, labels, radius=0.5, key=key)
    """
    batch_size = _checks.count("batch_size", batch_size)
    allowed_range = None if image_range is None else _finite_range(image_range)
    takes_radius = isinstance(attacks, Suite)
    suite = attacks if isinstance(attacks, Suite) else fixed(attacks)
    compiled = {name: compile_attack(partial(suite.member, name)) for name in suite.names}
    diagnose = compile_diagnosis(suite)
    forward = jax.jit(lambda function, images: _checks.logits(function(images), images.shape[0]))

    def run(
        logits_fn: LogitsFn,
        images: ArrayLike,
        labels: ArrayLike,
        *,
        key: jax.Array,
        radius: float | None = None,
        broken: ArrayLike | None = None,
        targets: ArrayLike | None = None,
        progress: ProgressCallback | None = None,
        collect: Collect | None = None,
    ) -> Evaluation:
        started = time.perf_counter()
        if (radius is not None) != takes_radius:
            wanted = "for a suite" if takes_radius else "for a suite only"
            raise TypeError(f"radius must be given {wanted}, got {radius}: suites.standard(0.5) makes its attacks")
        if radius is not None:
            _checks.radius("radius", radius)
        key = _checks.key(key)
        data, bounds = _checked(images, labels, targets, allowed_range)
        count = len(data.labels)
        setting = Setting(
            as_argument(logits_fn), forward, data, min(batch_size, count), refill, bounds, progress, collect
        )  # fmt: skip
        attacks_at_radius = [(attack, compiled[attack.name](radius)) for attack in suite(radius)]
        _rehearse(setting, attacks_at_radius, key)
        correct = predict(setting, data.images) == data.labels
        begun = correct if broken is None else correct & ~_mask("broken", broken, count)
        found: tuple[Flag, ...] = ()
        spent = 0
        if diagnosis:  # before the attacks: a model that fails here must not cost hours of results
            few, last_key = data.at(np.arange(min(count, 128))), jax.random.fold_in(key, len(attacks_at_radius))
            found, spent = diagnose(
                setting.logits_fn, few.images, few.labels, radius=radius, key=last_key, batch_size=setting.batch_size
            )
        outcomes = _run_in_turn(setting, attacks_at_radius, begun, independent=independent, key=key)
        calls = padded(count, setting.batch_size) + sum(outcome.model_calls for outcome in outcomes) + spent
        standing = begun & ~np.any([outcome.broken_mask for outcome in outcomes], axis=0)
        return Evaluation(
            examples=count,
            clean_accuracy=float(correct.mean()),
            robust_accuracy=float(standing.mean()),
            robust_interval=wilson_interval(int(standing.sum()), count),
            attacks=tuple(outcomes),
            flags=raised(OUTCOME_FLAGS, outcomes) + found,
            model_calls=calls,
            seconds=time.perf_counter() - started,
            independent=independent,
            correct_mask=correct,
            standing_mask=standing,
        )

    return run


def _finite_range(image_range: object) -> tuple[float, float]:
    low, high = _checks.image_range(image_range)
    if not np.isfinite([low, high]).all():
        raise ValueError(f"image_range must be finite, got {(low, high)}: None takes the range of the images")
    return low, high


def _mask(name: str, value: object, count: int) -> HostArray:
    mask = np.asarray(value)
    if mask.shape != (count,) or mask.dtype != bool:
        raise ValueError(f"{name} must be bool of shape ({count},), got {_checks.described(value)}")
    return mask


def _rehearse(setting: Setting, attacks: Sequence[tuple[Attack, Compiled]], key: jax.Array) -> None:
    """Traces the model and every attack without running them, so that what cannot work ends before the first attack."""
    data, size = setting.data, setting.batch_size
    batch = jax.ShapeDtypeStruct((size, *data.images.shape[1:]), data.images.dtype)
    classes = setting.forward.eval_shape(setting.logits_fn, batch).shape[1]
    _checks.class_indices("labels", data.labels, len(data.labels), classes=classes)
    if data.targets is not None:
        _checks.class_indices("targets", data.targets, len(data.labels), classes=classes)
    for attack, compiled in attacks:
        check_layout(attack.perturbation, data.images.shape)
        check_alike(attack, data, classes)
        compiled.trace(setting.logits_fn, data, key, size)


def _run_in_turn(
    setting: Setting,
    attacks: Iterable[tuple[Attack, Compiled]],
    begun: HostArray,
    *,
    independent: bool,
    key: jax.Array,
) -> list[AttackOutcome]:
    """Runs the attacks, starting from the examples of the mask `begun`."""
    attackable = begun if setting.data.targets is None else begun & (setting.data.targets != setting.data.labels)
    outcomes: list[AttackOutcome] = []
    broken, broken_by_gradients = np.zeros((2, len(begun)), bool)
    for number, (attack, compiled) in enumerate(attacks):
        # Gradient attacks also run on what only others broke: failing there is a red flag.
        skipped = broken_by_gradients if attack.uses_gradients else broken
        attacked, standing = (attackable, begun) if independent else (attackable & ~skipped, begun & ~broken)
        outcome = run_attack(setting, attack, compiled, attacked, standing, jax.random.fold_in(key, number))
        outcomes.append(outcome)
        broken = broken | outcome.broken_mask
        if attack.uses_gradients:
            broken_by_gradients = broken_by_gradients | outcome.broken_mask
    return outcomes


def _checked(
    images: ArrayLike, labels: ArrayLike, targets: ArrayLike | None, image_range: tuple[float, float] | None
) -> tuple[Data, tuple[float, float]]:
    """The examples on the host, and the range that attacked images keep: None is theirs, extended to zero."""
    images = _checks.images_on_host(images)
    count = images.shape[0]
    if count == 0:
        raise ValueError(f"images must hold at least one example, got shape {images.shape}")
    labels = np.asarray(_checks.class_indices("labels", labels, count))
    targets = None if targets is None else np.asarray(_checks.class_indices("targets", targets, count))
    low, high = float(images.min()), float(images.max())
    if not np.isfinite([low, high]).all():
        (bad,) = np.nonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
        raise ValueError(
            f"images must be finite, got NaN or infinity in {len(bad)}, the first at index {bad[0]}: leave these out"
        )
    if image_range is None:
        return Data(images, labels, targets), (min(0.0, low), max(0.0, high))
    slack = RANGE_SLACK * (image_range[1] - image_range[0])
    if low < image_range[0] - slack or high > image_range[1] + slack:
        raise ValueError(
            f"images must lie in image_range {image_range}, got values from {low:g} to {high:g}: scale them, or name "
            "the range that they have"
        )
    return Data(images, labels, targets), image_range
