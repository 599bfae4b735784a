"""Robust accuracy of any logits function under a suite of attacks, worst case per example.

Accuracies are fractions of *all* examples: one that is misclassified without an attack counts as broken. An example
*stands* while it is classified correctly and not broken by any attack; attacks run on the examples that stand. A fresh
forward pass checks every claimed success, and the budget and the image range are checked too. Symptoms of an evaluation
that cannot be trusted are reported as `flags`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Protocol

import jax
import numpy as np
from numpy.typing import ArrayLike

from deformreg import _checks
from deformreg.attacks.attack import Attack, LogitsFn, as_argument
from deformreg.criteria import Criterion
from deformreg.criteria.classification import criterion_or_classification
from deformreg.evaluation.data import HostArray, OnDemand, spaced
from deformreg.evaluation.devices import Devices, devices_of
from deformreg.evaluation.flags import OUTCOME_FLAGS, OUTPUT_FLAGS, compile_diagnosis, raised
from deformreg.evaluation.flags.outputs import observe_outputs, watched_rows
from deformreg.evaluation.inputs import checked_data, finite_range, mask_of, rehearse
from deformreg.evaluation.outcomes import AttackOutcome, Collect, ProgressCallback, Recall, Spent
from deformreg.evaluation.passes import Setting, clean_pass, compile_forward, padded
from deformreg.evaluation.quantized import on_8_bits
from deformreg.evaluation.results import Evaluation
from deformreg.evaluation.rows import Compiled, compile_attack
from deformreg.evaluation.running import checked, run_attack
from deformreg.evaluation.suites import Suite, fixed
from deformreg.interop.host import model_errors
from deformreg.statistics import wilson_interval

SHARE = 0.25
"""The model calls that the diagnosis may spend, as a share of all others but idle rows: at most a fifth of the sum."""


class Evaluator(Protocol):
    """A compiled evaluation. It takes the arguments of `evaluate` about model and examples, and two more.

    `radius` is passed to the suite: required if the evaluator was made from a suite, forbidden otherwise. `broken`
    (bool[n]) marks examples that are already known to be broken; they are not attacked.
    """

    def __call__(
        self,
        logits_fn: LogitsFn,
        images: ArrayLike | OnDemand,
        labels: ArrayLike,
        *,
        key: jax.Array,
        radius: float | None = None,
        broken: ArrayLike | None = None,
        targets: ArrayLike | None = None,
        progress: ProgressCallback | None = None,
        collect: Collect | None = None,
        recall: Recall | None = None,
    ) -> Evaluation: ...


def evaluate(
    logits_fn: LogitsFn,
    images: ArrayLike | OnDemand,
    labels: ArrayLike,
    attacks: Iterable[Attack],
    *,
    batch_size: int = 128,
    key: jax.Array,
    targets: ArrayLike | None = None,
    image_range: tuple[float, float] | None = None,
    criterion: Criterion | None = None,
    independent: bool = False,
    diagnosis: bool = True,
    refill: bool = True,
    quantize: bool = False,
    devices: Sequence[jax.Device] | None = None,
    progress: ProgressCallback | None = None,
    collect: Collect | None = None,
    recall: Recall | None = None,
) -> Evaluation:
    """Attacks a model and reports on which examples every attack fails.

    Attacks run in the given order, each on the correctly classified examples that no earlier attack broke. Gradient
    attacks also run on examples that only attacks without gradients broke: if they fail there, a red flag is raised.
    All batches have the same shape. When an example is finished, a waiting one takes its row; every example has its own
    key, so this does not change the result.

    Args:
        logits_fn: ``images -> logits[n, classes]`` in inference mode: logits, not probabilities, and each row must
            depend only on its own image. With ``jax.tree_util.Partial(apply, params)`` the weights are passed as
            arguments, not compiled in as constants.
        images: float[n, h, w, c] in the range the model expects; or `OnDemand`, which reads them when they are needed.
        labels: int[n], or what the criterion asks for.
        attacks: one or more with different names, for example ``deformreg.evaluation.suites.standard(0.5)``.
        batch_size: rows per batch and device; if there are fewer examples, their number. The model sees batches of this
            size only. At most an eighth of a device's examples is best, because rows idle at the end.
        key: a JAX random key. Attack k (in order) draws for example i from ``fold_in(fold_in(key, k), i)``.
        targets: int[n], the class that the attacks should reach on each example; None for untargeted attacks. With
            targets, `robust_accuracy` is the fraction of examples that are classified correctly and do not reach their
            target. An example whose target is its label is not attacked.
        image_range: attacked images outside this range do not count as successes. None means the range of `images`,
            extended to include zero, because warps may move zeros in at the border.
        criterion: when an output is broken, see `deformreg.criteria`; None is ``classification()``. Another criterion
            says what the model returns and what the labels are; a suite's members that fit it are
            ``suites.standard.suited_to(criterion)(0.5)``.
        independent: run every attack on every correctly classified example, also those that the suite tries on a
            sample only, so that you can compare the attacks.
        diagnosis: also run the checks for red flags that need extra model calls: on clean images before the attacks,
            and short attacks after them on up to 128 examples that no gradient attack broke. They cost at most a fifth
            of all model calls, unless the attacks spend fewer than about 25 batches.
        refill: whether waiting examples take the rows of finished ones; False waits until a whole batch is finished.
        quantize: the model sees images rounded to the 256 levels of `image_range`, which must be given: what is broken
            survives saving with 8 bits. `collect` gets the rounded images.
        devices: over which the rows are divided, for example ``jax.local_devices()``; None is JAX's default device.
            The results do not depend on them, but for the model calls of idle rows. The diagnosis runs on one.
        progress: called with a `Progress` whenever examples are finished.
        collect: called at the same times with the `Attack`, the indices int[k] of the finished examples and their
            `AttackResult` as NumPy arrays, for example to keep deformed images or flows. The successes in it are not
            checked yet: the `broken_mask` of the attack's outcome says which the fresh check confirmed.
        recall: called once for each attack, in order, with the `Attack` and a function that runs it and returns its
            `AttackOutcome`. It returns that outcome, or one that it kept from an earlier evaluation with the same
            arguments, for example to continue one that was interrupted. `collect` is not called for kept outcomes.
            The function is a `Run`: it can also continue in the middle of an attack, and share it among processes.

    Returns:
        The evaluation.

    Raises:
        TypeError: integer images, floating labels, a `batch_size` that is not an integer, a `key` that is not a random
            key, `attacks` that are not attacks, or a `logits_fn` that does not return one array of floating logits.
        ValueError: no examples; images that are not finite, leave `image_range` or look like [n, c, h, w]; labels
            outside the classes; no attack, two attacks with the same name, or an attack with one radius per example;
            shapes that do not match; an attack or targets that do not fit the criterion. All are raised before the
            first attack. Also if `recall` returns the outcome of another attack or of other examples.
        NoGradients: a gradient attack on a model without gradients (`deformreg.interop`), before the model is called.
        ModelError: a model of `deformreg.interop` fails before or in an attack; in the diagnosis after them, a model's
            failure is the red flag `diagnosis_failed`.

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
        >>> kept = {}
        >>> def recall(attack, run):
        ...     if attack.name not in kept:
        ...         kept[attack.name] = run()
        ...     return kept[attack.name]
        >>> for _ in range(2):  # the second time no attack runs
        ...     again = evaluate(edge, images, labels, attacks, key=jax.random.key(0), diagnosis=False, recall=recall)
        >>> again.attacks == tuple(kept.values())
        True

    References:
        Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
        Attacks", ICML 2020 (sequence of attacks, fresh check, flags).
        Carlini et al., "On Evaluating Adversarial Robustness", arXiv 1902.06705.
    """
    run = evaluator(
        attacks,
        batch_size=batch_size,
        image_range=image_range,
        criterion=criterion,
        independent=independent,
        diagnosis=diagnosis,
        refill=refill,
        quantize=quantize,
        devices=devices,
    )
    return run(logits_fn, images, labels, key=key, targets=targets, progress=progress, collect=collect, recall=recall)


def evaluator(
    attacks: Suite | Iterable[Attack],
    *,
    batch_size: int = 128,
    image_range: tuple[float, float] | None = None,
    criterion: Criterion | None = None,
    independent: bool = False,
    diagnosis: bool = True,
    refill: bool = True,
    quantize: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Evaluator:
    """Makes an evaluation that compiles once and runs for many models and budgets.

    Args:
        attacks: a suite, for example `deformreg.evaluation.suites.standard`, or attacks as in `evaluate`.
        batch_size: as in `evaluate`, like the following.
        image_range: the range outside which attacked images do not count as successes.
        criterion: when an output is broken.
        independent: whether every attack runs on every correctly classified example.
        diagnosis: whether to run the checks for red flags that need extra model calls.
        refill: whether waiting examples take the rows of finished ones.
        quantize: whether the model sees images of 8 bits.
        devices: over which the rows are divided.

    Returns:
        A function of the model and the examples. For images of the same shape it does not recompile at another radius,
        for the same model function, or for a ``Partial`` of the same function with other weights.

    Raises:
        TypeError: `batch_size` is not an integer. When the evaluation runs: a suite without a radius, or a radius
            without a suite.
        ValueError: no attack, or two with the same name.

    Example:
        >>> from deformreg.evaluation import suites
        >>> run = evaluator(suites.quick, batch_size=64)  # then run(logits_fn, images, labels, radius=0.5, key=key)
    """
    batch_size = _checks.count("batch_size", batch_size)
    allowed_range = None if image_range is None else finite_range(image_range)
    if quantize and allowed_range is None:
        raise ValueError("image_range must be given to quantize, for example (0.0, 1.0), got None")
    takes_radius = isinstance(attacks, Suite)
    suite = attacks if isinstance(attacks, Suite) else fixed(attacks)
    spread = devices_of(devices)
    compiled = {name: compile_attack(partial(suite.member, name), spread) for name in suite.names}
    criterion = criterion_or_classification(criterion)
    diagnose = compile_diagnosis(suite)
    forward = compile_forward(criterion, spread)
    forward_alone = forward if spread.mesh is None else compile_forward(criterion, Devices())

    @model_errors()
    def run(
        logits_fn: LogitsFn,
        images: ArrayLike | OnDemand,
        labels: ArrayLike,
        *,
        key: jax.Array,
        radius: float | None = None,
        broken: ArrayLike | None = None,
        targets: ArrayLike | None = None,
        progress: ProgressCallback | None = None,
        collect: Collect | None = None,
        recall: Recall | None = None,
    ) -> Evaluation:
        started = time.perf_counter()
        if (radius is not None) != takes_radius:
            wanted = "for a suite" if takes_radius else "for a suite only"
            raise TypeError(f"radius must be given {wanted}, got {radius}: suites.standard(0.5) makes its attacks")
        if radius is not None:
            _checks.radius("radius", radius)
        key = _checks.key(key)
        data, bounds = checked_data(images, labels, targets, allowed_range, criterion)
        count = len(data.labels)
        model = as_argument(logits_fn)
        model = on_8_bits(model, bounds) if quantize else model
        rows = min(batch_size, -(-count // spread.count)) * spread.count
        setting = Setting(
            spread.put(model), forward(), data, rows, refill, bounds, progress, collect, recall, quantize
        )  # fmt: skip
        alone = setting._replace(logits_fn=model, forward=forward_alone(), batch_size=min(batch_size, count))
        attacks_at_radius = [(attack, compiled[attack.name](radius)) for attack in suite(radius)]
        rehearse(setting, attacks_at_radius, key)
        watched = watched_rows(count, alone.batch_size)
        clean = clean_pass(setting, watched)
        correct = ~clean.broken
        begun = correct if broken is None else correct & ~mask_of("broken", broken, count)
        flags, spent = [], Spent()
        if diagnosis:
            seen = observe_outputs(alone, clean, watched)
            flags, spent = [*raised(OUTPUT_FLAGS, seen)], Spent(seen.model_calls)
        attacks_began = time.perf_counter()
        outcomes = _run_in_turn(setting, attacks_at_radius, begun, independent=independent, key=key)
        started += time.perf_counter() - attacks_began  # each outcome has its own seconds, also one that was kept
        attack_seconds = sum(outcome.seconds + outcome.compile_seconds for outcome in outcomes)
        calls = padded(count, setting.batch_size) + sum(outcome.model_calls for outcome in outcomes)
        standing = begun & ~np.any([outcome.broken_mask for outcome in outcomes], axis=0)
        if diagnosis:
            budget = round(_useful_calls(count, outcomes) * SHARE) - spent.model_calls
            more, cost = diagnose(alone, outcomes, begun, clean, radius=radius, calls=budget)
            flags, spent = [*flags, *more], spent.plus(cost)
        return Evaluation(
            examples=count,
            clean_accuracy=float(correct.mean()),
            robust_accuracy=float(standing.mean()),
            robust_interval=wilson_interval(int(standing.sum()), count),
            attacks=tuple(outcomes),
            flags=(*raised(OUTCOME_FLAGS, outcomes), *flags),
            diagnosis=spent,
            model_calls=calls + spent.model_calls,
            seconds=time.perf_counter() - started + attack_seconds,
            independent=independent,
            correct_mask=correct,
            standing_mask=standing,
            criterion=criterion.name,
        )

    return run


def _run_in_turn(
    setting: Setting,
    attacks: Iterable[tuple[Attack, Compiled]],
    begun: HostArray,
    *,
    independent: bool,
    key: jax.Array,
) -> list[AttackOutcome]:
    """Runs the attacks in order on the examples of the mask `begun`."""
    attackable = begun if setting.data.targets is None else begun & (setting.data.targets != setting.data.labels)
    outcomes: list[AttackOutcome] = []
    broken, broken_by_gradients = np.zeros((2, len(begun)), bool)
    for number, (attack, compiled) in enumerate(attacks):
        # Gradient attacks also run on what only gradient-free attacks broke: if they fail there, a red flag is raised.
        skipped = broken_by_gradients if attack.uses_gradients else broken
        attacked, standing = (attackable, begun) if independent else (attackable & ~skipped, begun & ~broken)
        if attack.sample is not None and not independent:
            attacked = _thinned(attacked, attack.sample)
        run = partial(run_attack, setting, number, attack, compiled, attacked, standing, key)
        outcome = run() if setting.recall is None else checked(setting.recall(attack, run), attack, attacked, standing)
        outcomes.append(outcome)
        broken = broken | outcome.broken_mask
        if attack.uses_gradients:
            broken_by_gradients = broken_by_gradients | outcome.broken_mask
    return outcomes


def _useful_calls(count: int, outcomes: Sequence[AttackOutcome]) -> int:
    """The model calls without idle rows, so that the diagnosis does not depend on the number of devices."""
    return count + sum(round(one.mean_calls * one.attacked) + one.broken + one.rejected for one in outcomes)


def _thinned(mask: HostArray, count: int) -> HostArray:
    """At most `count` of the marked examples, evenly spaced."""
    kept = np.zeros_like(mask)
    kept[spaced(np.flatnonzero(mask), count)] = True
    return kept
