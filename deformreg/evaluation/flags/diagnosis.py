"""The diagnosis of a model: the red flags that need model passes of their own, within a fifth of the model calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from deformreg._programs import jitted
from deformreg.attacks.attack import Attack, Examples, row_keys
from deformreg.evaluation.data import HostArray, spaced
from deformreg.evaluation.flags.flag import Flag, raised
from deformreg.evaluation.flags.queries import QUERY_CALLS, QUERY_FLAGS, ObserveQueries, compile_queries
from deformreg.evaluation.flags.responses import (
    CLASS_FLAGS,
    CONDITIONS,
    RESPONSE_FLAGS,
    Felt,
    Probe,
    Responses,
    Rows,
    compile_probe,
    half_side,
    no_responses,
)
from deformreg.evaluation.outcomes import AttackOutcome, Progress, Spent
from deformreg.evaluation.passes import Clean, Setting, in_batches
from deformreg.evaluation.suites import Suite
from deformreg.interop.host import ModelError, NoGradients, model_errors
from deformreg.perturbations import Perturbation, flow

MOST_EXAMPLES = 128
MOST_STEPS = 20
FEWEST_STEPS = 5  # fewer say nothing about a model that resists
WORKING = 0.95  # of the examples broken by gradient attacks: the gradients do not mislead

Radii = tuple[float, float, float, float]


class Diagnosis(Protocol):
    """A function that looks for red flags in how a model responds to perturbations, after the attacks of a suite.

    `correct` (bool[n]) are the examples to look at, `clean` the clean pass, `radius` the suite's, and `calls` the
    model calls to spend; `FEWEST_STEPS` of one batch are taken in any case. It returns the flags and what they cost.
    """

    def __call__(
        self,
        setting: Setting,
        outcomes: Sequence[AttackOutcome],
        correct: HostArray,
        clean: Clean,
        *,
        radius: Any,
        calls: int,
    ) -> tuple[tuple[Flag, ...], Spent]: ...


def compile_diagnosis(suite: Suite) -> Diagnosis:
    """Compiles a diagnosis once, for models and budgets that are diagnosed again and again.

    Args:
        suite: the diagnosis examines the family of the gradient attack with the largest budget, in the largest cube
            inside its ball; a flow of up to one pixel if there is none. Of a model without gradients it examines the
            family of any attack, and only how the outputs respond to random perturbations.

    Returns:
        The diagnosis.
    """

    return _without_failing(partial(_examine, suite, _compile_parts(suite)))


class _Parts(NamedTuple):
    """Functions of the name of the examined attack (None for a flow), each compiled when it is first needed.

    Attributes:
        family: ``(name, radius) -> family``: that of the attack, without its own bound.
        probe: see `compile_probe`.
        queries: see `compile_queries`.
        largest_change: ``name -> (radius, images) -> change`` that the family's identity makes.
    """

    family: Callable[[str | None, Any], Perturbation]
    probe: Callable[[str | None], Probe]
    queries: Callable[[str | None], ObserveQueries]
    largest_change: Callable[[str | None], Callable[[Any, HostArray], jax.Array]]


def _compile_parts(suite: Suite) -> _Parts:
    def family(name: str | None, radius: Any) -> Perturbation:
        if name is None:
            return flow()
        bounded = suite.member(name, radius).perturbation
        return bounded.unbounded or bounded  # larger budgets than its bound are tried

    def largest_change(name: str | None) -> Callable[[Any, HostArray], jax.Array]:
        def change(radius: Any, images: jax.Array) -> jax.Array:
            examined = family(name, radius)
            zeros = examined.constrain(examined.init(images), images)  # not zeros if the images leave its range
            return jnp.max(jnp.abs(examined.apply(zeros, images) - images))

        compiled: Callable[[Any, HostArray], jax.Array] = jitted(change)()
        return compiled

    return _Parts(
        family,
        cache(lambda name: compile_probe(partial(family, name))),
        cache(lambda name: compile_queries(partial(family, name))),
        cache(largest_change),
    )


def _examine(
    suite: Suite,
    parts: _Parts,
    setting: Setting,
    outcomes: Sequence[AttackOutcome],
    correct: HostArray,
    clean: Clean,
    *,
    radius: Any,
    calls: int,
) -> tuple[tuple[Flag, ...], Spent]:
    """Examines how the examples that resist gradient attacks respond to larger budgets; see `Diagnosis`."""
    started = time.perf_counter()
    images, size = setting.data.images, setting.batch_size
    name, side = _examined((attack for attack in suite(radius) if attack.uses_gradients), images)
    radii = _radii(side, parts.family(name, radius), setting)
    share, resisting = _resisting(outcomes, correct)
    change = float(parts.largest_change(name)(radius, images[:size]))
    felt, cost = no_responses(share, change, radii), Spent()
    if share > 1 - WORKING and len(resisting):
        steps = int(np.clip(calls // size - 1, FEWEST_STEPS, MOST_STEPS))
        count = max(calls // size // (steps + 1), 1) * size // CONDITIONS
        chosen = spaced(resisting, int(np.clip(count, 1, MOST_EXAMPLES)))
        rows = _rows(setting, chosen, clean, radii, steps)
        standing = correct & ~np.any([outcome.broken_mask for outcome in outcomes], axis=0)
        try:
            run = partial(parts.probe(name), radius, setting.logits_fn)
            found, cost = _run(run, rows, setting, float(standing.mean()))
        except NoGradients:
            return _examine_answers(suite, parts, setting, resisting, radius=radius, calls=calls)
        felt = _responses(felt, setting, chosen, clean, found)
    seconds = time.perf_counter() - started - cost.compile_seconds
    flags = CLASS_FLAGS if setting.data.criterion.one_class else RESPONSE_FLAGS
    return raised(flags, felt), cost._replace(seconds=seconds)


def _examine_answers(
    suite: Suite, parts: _Parts, setting: Setting, resisting: HostArray, *, radius: Any, calls: int
) -> tuple[tuple[Flag, ...], Spent]:
    """Examines a model without gradients: how its outputs respond to random perturbations."""
    started, size = time.perf_counter(), setting.batch_size
    name, side = _examined(suite(radius), setting.data.images)
    rows = max(calls // ((QUERY_CALLS + 1) * size), 1) * size
    chosen = np.resize(spaced(resisting, min(rows, MOST_EXAMPLES)), rows)
    data = setting.data._replace(targets=None).at(chosen)
    outputs = np.concatenate([np.asarray(judged.outputs, np.float64) for _, judged in in_batches(setting, data)])
    keys = row_keys(jax.random.key(0), jnp.arange(rows))
    examples = Examples(jnp.asarray(data.images), jnp.asarray(data.labels), keys, None, data.criterion)
    answered = parts.queries(name)(radius, setting.logits_fn, examples, outputs, side, size)
    return raised(QUERY_FLAGS, answered), Spent((QUERY_CALLS + 1) * rows, time.perf_counter() - started)


def diagnosis_failed(error: Exception) -> Flag | None:
    """Flags a model that fails while the diagnosis runs: the attacks before it are not to be lost."""
    # Where JAX notices the failure of a callback late, it raises this `ValueError`.
    late = isinstance(error, ValueError) and str(error).startswith("INTERNAL: ")
    if not late and not isinstance(error, (ModelError, jax.errors.JaxRuntimeError)):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return Flag(
        "diagnosis_failed",
        "The model failed after the attacks, in the search for red flags: the flags of gradients and short attacks are "
        "unknown. Its model calls are not counted.",
        {"error": lines[-1 if "Traceback" in lines[0] else 0]},  # a callback's error follows its traceback
    )


def _without_failing(examine: Diagnosis) -> Diagnosis:
    """The diagnosis, with a flag in place of an error at run time."""

    def diagnose(*arguments: Any, **options: Any) -> tuple[tuple[Flag, ...], Spent]:
        started = time.perf_counter()
        try:
            with model_errors():
                return examine(*arguments, **options)
        except Exception as error:
            flag = diagnosis_failed(error)
            if flag is None:
                raise
            return (flag,), Spent(seconds=time.perf_counter() - started)

    return diagnose


def _examined(attacks: Iterable[Attack], images: HostArray) -> tuple[str | None, float]:
    """The name of the attack with the largest cube inside its ball, and half the cube's side; one pixel if none has."""
    sizes = [(half_side(attack, images), attack.name) for attack in attacks]
    side, name = max(sizes, key=lambda entry: entry[0], default=(0.0, None))
    return (name, side) if side > 0 else (None, 1.0)


def _radii(side: float, family: Perturbation, setting: Setting) -> Radii:
    """The budgets to try; the last one allows nearly anything."""
    # A flow of half the image reaches any pixel; other families may use the whole range of the images.
    low, high = setting.image_range
    half = 1.0 if family.unit == "normalized" else max(setting.data.images.shape[1:-1]) / 2
    anything = half if family.field is not None else max(high - low, 1e-3)
    return side, 2 * side, 4 * side, max(anything, 4 * side)


def _resisting(outcomes: Sequence[AttackOutcome], correct: HostArray) -> tuple[float, HostArray]:
    """The share, of the examples that gradient attacks tried, that none of them broke, and which these are.

    All examples resist if there is no such attack.
    """
    gradients = [outcome for outcome in outcomes if outcome.uses_gradients]
    if not gradients:
        return 1.0, np.flatnonzero(correct)
    tried = np.any([outcome.attacked_mask for outcome in gradients], axis=0)
    resisting = tried & ~np.any([outcome.broken_mask for outcome in gradients], axis=0)
    return float(resisting.sum() / max(tried.sum(), 1)), np.flatnonzero(resisting)


def _rows(setting: Setting, chosen: HostArray, clean: Clean, radii: Radii, steps: int) -> Rows:
    """A row per chosen example and condition, in full batches: the last one is filled up by repetition."""
    count = -(-len(chosen) * CONDITIONS // setting.batch_size) * setting.batch_size
    at = np.resize(np.repeat(chosen, CONDITIONS), count)
    sizes = np.resize(np.array([radii[0], *radii], np.float32), count)
    numbers = np.resize(np.array([1, *4 * [steps]], np.int32), count)
    lengths = sizes * np.where(numbers == 1, 1, max(2.5 / steps, 0.25)).astype(np.float32)
    return Rows(setting.data._replace(targets=None).at(at), clean.losses[at], sizes, lengths, numbers)


def _run(
    probe: Callable[[Rows], tuple[Felt, jax.Array]], rows: Rows, setting: Setting, robust_accuracy: float
) -> tuple[Felt, Spent]:
    """Runs the probe in batches: what the rows felt, and the cost; of the seconds only those of compiling."""
    started, size, total = time.perf_counter(), setting.batch_size, len(rows.steps)
    batches = [jax.tree.map(lambda leaf, at=at: leaf[at : at + size], rows) for at in range(0, total, size)]
    jax.block_until_ready(probe(batches[0]._replace(steps=np.full(size, -1, np.int32))))  # every row idles
    compiling = time.perf_counter() - started
    parts, steps = [], 0
    for number, batch in enumerate(batches, 1):
        felt, taken = jax.device_get(probe(batch))
        parts.append(felt)
        steps += int(taken)
        if setting.progress is not None:
            finished = number * size // CONDITIONS
            setting.progress(Progress("diagnosis", finished, total // CONDITIONS, robust_accuracy))
    felt = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return felt, Spent(steps * size, compile_seconds=compiling)


def _responses(nothing: Responses, setting: Setting, chosen: HostArray, clean: Clean, felt: Felt) -> Responses:
    """What the examples felt, by condition."""
    gradients, losses, broken = (
        values[: CONDITIONS * len(chosen)].reshape(len(chosen), CONDITIONS).T
        for values in (felt.gradients, felt.losses, felt.broken)
    )
    one_class = setting.data.criterion.one_class
    losses_there = clean.losses[chosen]
    largest_loss = float(np.abs(losses_there[np.isfinite(losses_there)]).max(initial=0.0))
    return nothing._replace(
        gradients=gradients[0],
        margins=-clean.margins[chosen] if one_class else np.zeros(len(chosen)),
        # A regression's losses have another unit than its outputs.
        largest_logit=clean.largest if one_class else max(clean.largest, largest_loss),
        change_of_outputs=float(np.max(felt.changes)),
        standing=~broken[1:],
        losses=losses[1:],
        standing_after_one=~broken[0],
    )
