"""Evaluations that compile once and run for many models and budgets; `evaluate` is one of them, run once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from numpy.typing import ArrayLike

from deformreg import _checks
from deformreg.attacks.attack import Attack, LogitsFn, as_argument
from deformreg.criteria import Criterion
from deformreg.criteria.classification import criterion_or_classification
from deformreg.evaluation.data import Data, HostArray, OnDemand, spaced
from deformreg.evaluation.devices import Devices, devices_of
from deformreg.evaluation.flags import OUTCOME_FLAGS, OUTPUT_FLAGS, Flag, compile_diagnosis, raised
from deformreg.evaluation.flags.diagnosis import Diagnosis
from deformreg.evaluation.flags.outputs import observe_outputs, watched_rows
from deformreg.evaluation.inputs import checked_data, finite_range, mask_of, rehearse
from deformreg.evaluation.outcomes import AttackOutcome, Collect, ProgressCallback, Recall, Spent
from deformreg.evaluation.passes import Clean, Setting, clean_pass, compile_forward, padded
from deformreg.evaluation.quantized import on_8_bits
from deformreg.evaluation.results import Evaluation
from deformreg.evaluation.rows import Compiled, compile_attack
from deformreg.evaluation.running import checked, run_attack
from deformreg.evaluation.suites import Suite, fixed
from deformreg.interop.host import model_errors
from deformreg.statistics import wilson_interval

SHARE = 0.25
"""The model calls that the diagnosis may spend, as a share of all others but idle rows: at most a fifth of the sum."""

FEWEST_ROWS, MOST_ROWS = 4, 128
"""Rows of a batch, where a user names no number."""


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


def evaluator(
    attacks: Suite | Iterable[Attack],
    *,
    batch_size: int | None = None,
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
        for the same model function, or for a ``Partial`` of the same function with other weights. Weights that a
        function holds itself stay those of its first call: pass a ``Partial`` of a network that you train further.

    Raises:
        TypeError: `batch_size` is not an integer. When the evaluation runs: a suite without a radius, or a radius
            without a suite.
        ValueError: no attack, or two with the same name; an `image_range` that is empty or infinite, or none with
            `quantize`.

    Example:
        >>> from deformreg.evaluation import suites
        >>> run = evaluator(suites.quick, batch_size=64)  # then run(logits_fn, images, labels, radius=0.5, key=key)
    """
    batch_size = None if batch_size is None else _checks.count("batch_size", batch_size)
    allowed_range = None if image_range is None else finite_range(image_range)
    if quantize and allowed_range is None:
        raise ValueError("image_range must be given to quantize, for example (0.0, 1.0), got None")
    suite = attacks if isinstance(attacks, Suite) else fixed(attacks)
    spread = devices_of(devices)
    criterion = criterion_or_classification(criterion)
    forward = compile_forward(criterion, spread)
    plan = _Plan(
        suite=suite,
        takes_radius=isinstance(attacks, Suite),
        attacks={name: compile_attack(partial(suite.member, name), spread) for name in suite.names},
        forward=forward,
        forward_alone=forward if spread.mesh is None else compile_forward(criterion, Devices()),
        diagnose=compile_diagnosis(suite) if diagnosis else None,
        criterion=criterion,
        devices=spread,
        batch_size=batch_size,
        image_range=allowed_range,
        independent=independent,
        refill=refill,
        quantize=quantize,
    )
    return partial(_evaluate, plan)


class _Plan(NamedTuple):
    """What an evaluator has compiled, and its options.

    Attributes:
        suite: the attacks.
        takes_radius: whether it was made from a suite.
        attacks: by name, each compiled for all radii.
        forward: see `compile_forward`.
        forward_alone: the same on a single device.
        diagnose: the diagnosis, or None.
        criterion: when an output is broken.
        devices: over which the rows are divided.
        batch_size: rows per device; None fits the number of examples.
        image_range: the range of attacked images; None is that of the images.
        independent: as in `evaluate`, like the following.
        refill: whether waiting examples take the rows of finished ones.
        quantize: whether the model sees images of 8 bits.
    """

    suite: Suite
    takes_radius: bool
    attacks: dict[str, Callable[[Any], Compiled]]
    forward: Callable[[], Any]
    forward_alone: Callable[[], Any]
    diagnose: Diagnosis | None
    criterion: Criterion
    devices: Devices
    batch_size: int | None
    image_range: tuple[float, float] | None
    independent: bool
    refill: bool
    quantize: bool


class _Flagged(NamedTuple):
    """Red flags and what they cost."""

    flags: tuple[Flag, ...] = ()
    spent: Spent = Spent()


@model_errors()
def _evaluate(
    plan: _Plan,
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
    """Runs an evaluation: the clean pass, the attacks in turn, the diagnosis. See `Evaluator`."""
    started = time.perf_counter()
    _check_radius(plan, radius)
    key = _checks.key(key)
    data, bounds = checked_data(images, labels, targets, plan.image_range, plan.criterion)
    setting, alone = _settings(plan, logits_fn, data, bounds)
    setting = setting._replace(progress=progress, collect=collect, recall=recall)
    alone = alone._replace(progress=progress)
    attacks = [(attack, plan.attacks[attack.name](radius)) for attack in plan.suite(radius)]
    rehearse(setting, attacks, key)
    watched = watched_rows(len(data.labels), alone.batch_size)
    clean = clean_pass(setting, watched)
    begun = ~clean.broken if broken is None else ~clean.broken & ~mask_of("broken", broken, len(data.labels))
    flagged = _flag_outputs(plan, alone, clean, watched)
    attacks_began = time.perf_counter()
    outcomes = _run_in_turn(setting, attacks, begun, independent=plan.independent, key=key)
    started += time.perf_counter() - attacks_began  # each outcome has its own seconds, also one that was kept
    flagged = _flag_responses(plan, alone, clean, begun, outcomes, radius, flagged)
    evaluation = _concluded(plan, setting, clean, begun, outcomes, flagged)
    return evaluation._replace(seconds=evaluation.seconds + time.perf_counter() - started)


def _check_radius(plan: _Plan, radius: float | None) -> None:
    """Raises unless a suite has a radius, and attacks have none."""
    if (radius is not None) != plan.takes_radius:
        wanted = "for a suite" if plan.takes_radius else "for a suite only"
        raise TypeError(f"radius must be given {wanted}, got {radius}: suites.standard(0.5) makes its attacks")
    if radius is not None:
        _checks.radius("radius", radius)


def _settings(plan: _Plan, logits_fn: LogitsFn, data: Data, bounds: tuple[float, float]) -> tuple[Setting, Setting]:
    """The setting of the attacks, and that of passes on a single device."""
    count, parts = len(data.labels), plan.devices.count
    model = as_argument(logits_fn)
    model = on_8_bits(model, bounds) if plan.quantize else model
    alone = Setting(
        model, plan.forward_alone(), data, _rows(plan, count), plan.refill, bounds, None, None,
        quantize=plan.quantize,
    )  # fmt: skip
    rows = _rows(plan, -(-count // parts)) * parts
    spread = alone._replace(logits_fn=plan.devices.put(model), forward=plan.forward(), batch_size=rows)
    return spread, alone


def _rows(plan: _Plan, count: int) -> int:
    """The rows of a batch on a device that has `count` examples."""
    fitting = min(max(-(-count // 8), FEWEST_ROWS), MOST_ROWS)
    return min(fitting if plan.batch_size is None else plan.batch_size, count)


def _flag_outputs(plan: _Plan, alone: Setting, clean: Clean, watched: HostArray) -> _Flagged:
    """What the diagnosis finds in the outputs for clean images."""
    if plan.diagnose is None:
        return _Flagged()
    seen = observe_outputs(alone, clean, watched)
    return _Flagged(raised(OUTPUT_FLAGS, seen), Spent(seen.model_calls))


def _flag_responses(
    plan: _Plan,
    alone: Setting,
    clean: Clean,
    begun: HostArray,
    outcomes: Sequence[AttackOutcome],
    radius: float | None,
    before: _Flagged,
) -> _Flagged:
    """What the diagnosis has found before, with what it finds after the attacks."""
    if plan.diagnose is None:
        return before
    calls = round(_useful_calls(len(begun), outcomes) * SHARE) - before.spent.model_calls
    flags, spent = plan.diagnose(alone, outcomes, begun, clean, radius=radius, calls=calls)
    return _Flagged((*before.flags, *flags), before.spent.plus(spent))


def _concluded(
    plan: _Plan,
    setting: Setting,
    clean: Clean,
    begun: HostArray,
    outcomes: Sequence[AttackOutcome],
    flagged: _Flagged,
) -> Evaluation:
    """The evaluation; its seconds are those of the attacks."""
    count, correct = len(begun), ~clean.broken
    standing = begun & ~np.any([outcome.broken_mask for outcome in outcomes], axis=0)
    calls = padded(count, setting.batch_size) + sum(outcome.model_calls for outcome in outcomes)
    return Evaluation(
        examples=count,
        clean_accuracy=float(correct.mean()),
        robust_accuracy=float(standing.mean()),
        robust_interval=wilson_interval(int(standing.sum()), count),
        attacks=tuple(outcomes),
        flags=(*raised(OUTCOME_FLAGS, outcomes), *flagged.flags),
        diagnosis=flagged.spent,
        model_calls=calls + flagged.spent.model_calls,
        seconds=sum(outcome.seconds + outcome.compile_seconds for outcome in outcomes),
        independent=plan.independent,
        correct_mask=correct,
        standing_mask=standing,
        criterion=plan.criterion.name,
    )


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
