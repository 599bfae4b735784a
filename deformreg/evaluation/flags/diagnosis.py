"""The diagnosis of a model: the red flags that need model passes of their own, within a fifth of the model calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from deformreg.evaluation.flags.responses import (
    CONDITIONS,
    Felt,
    Probe,
    Responses,
    Rows,
    compile_probe,
    half_side,
    no_responses,
)
from deformreg.evaluation.outcomes import AttackOutcome, Progress, Setting, Spent
from deformreg.evaluation.rows import HostArray
from deformreg.evaluation.suites import Suite
from deformreg.perturbations import Perturbation, flow

MOST_EXAMPLES = 128
MOST_STEPS = 20
FEWEST_STEPS = 5  # fewer say nothing about a model that resists
WORKING = 0.95  # of the examples broken by gradient attacks: the gradients do not mislead

Radii = tuple[float, float, float, float]


class Diagnosis(Protocol):
    """A function that looks for red flags in how a model responds to perturbations, after the attacks of a suite.

    `correct` (bool[n]) are the examples to look at, `logits` the clean pass, `radius` the suite's, and `calls` the
    model calls to spend; `FEWEST_STEPS` of one batch are taken in any case.
    """

    def __call__(
        self,
        setting: Setting,
        outcomes: Sequence[AttackOutcome],
        correct: HostArray,
        logits: HostArray,
        *,
        radius: Any,
        calls: int,
    ) -> tuple[Responses, Spent]: ...


def compile_diagnosis(suite: Suite) -> Diagnosis:
    """Compiles a diagnosis once, for models and budgets that are diagnosed again and again.

    Args:
        suite: the diagnosis examines the family of the gradient attack with the largest budget, in the largest cube
            inside its ball; a flow of up to one pixel if there is none.

    Returns:
        The diagnosis.
    """

    def family(name: str | None, radius: Any) -> Perturbation:
        if name is None:
            return flow()
        bounded = suite.member(name, radius).perturbation
        return bounded.unbounded or bounded  # larger budgets than its bound are tried

    @cache
    def probe(name: str | None) -> Probe:
        return compile_probe(partial(family, name))

    @cache
    def largest_change(name: str | None) -> Callable[[Any, HostArray], jax.Array]:
        def change(radius: Any, images: jax.Array) -> jax.Array:
            examined = family(name, radius)
            return jnp.max(jnp.abs(examined.apply(examined.init(images), images) - images))

        return jax.jit(change)

    def diagnose(
        setting: Setting,
        outcomes: Sequence[AttackOutcome],
        correct: HostArray,
        logits: HostArray,
        *,
        radius: Any,
        calls: int,
    ) -> tuple[Responses, Spent]:
        started = time.perf_counter()
        images, size = setting.data.images, setting.batch_size
        candidates = ((half_side(attack, images), attack.name) for attack in suite(radius))
        side, name = max(candidates, key=lambda pair: pair[0])
        examined, side = (name, side) if side > 0 else (None, 1.0)
        radii = _radii(side, family(examined, radius), images)
        change = float(largest_change(examined)(radius, images[:size]))
        share, resisting = _resisting(outcomes, correct)
        if share <= 1 - WORKING:
            return no_responses(share, change, radii), Spent(0, time.perf_counter() - started)
        steps = int(np.clip(calls // size - 1, FEWEST_STEPS, MOST_STEPS))
        count = max(calls // size // (steps + 1), 1) * size // CONDITIONS
        chosen = _spaced(resisting, int(np.clip(count, 1, MOST_EXAMPLES)))
        run = partial(probe(examined), radius, setting.logits_fn)
        standing = correct & ~np.any([outcome.broken_mask for outcome in outcomes], axis=0)
        rows = _rows(setting, chosen, logits, radii, steps)
        felt, model_calls, compiling = _run(run, rows, setting, float(standing.mean()))
        responses = _responses(setting, chosen, logits, felt, radii)._replace(share=share, change_of_images=change)
        return responses, Spent(model_calls, time.perf_counter() - started - compiling, compiling)

    return diagnose


def _radii(side: float, family: Perturbation, images: HostArray) -> Radii:
    """The budgets to try; the last one allows nearly anything."""
    # A flow of half the image reaches any pixel; other families may use the whole range of the images.
    anything = max(images.shape[1:3]) / 2 if family.field is not None else max(float(np.ptp(images)), 1e-3)
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


def _spaced(indices: HostArray, count: int) -> HostArray:
    """At most `count` of the indices, evenly spaced."""
    spaced: HostArray = indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)]
    return spaced


def _rows(setting: Setting, chosen: HostArray, logits: HostArray, radii: Radii, steps: int) -> Rows:
    """A row per chosen example and condition, in full batches: the last one is filled up by repetition."""
    count = -(-len(chosen) * CONDITIONS // setting.batch_size) * setting.batch_size
    at = np.resize(np.repeat(chosen, CONDITIONS), count)
    sizes = np.resize(np.array([radii[0], *radii], np.float32), count)
    numbers = np.resize(np.array([1, *4 * [steps]], np.int32), count)
    lengths = sizes * np.where(numbers == 1, 1, max(2.5 / steps, 0.25)).astype(np.float32)
    data = setting.data.at(at)
    return Rows(data.images, data.labels, logits[at], sizes, lengths, numbers)


def _run(
    probe: Callable[[Rows], tuple[Felt, jax.Array]], rows: Rows, setting: Setting, robust_accuracy: float
) -> tuple[Felt, int, float]:
    """Runs the probe in batches: what the rows felt, the model calls, and the seconds of compiling."""
    started, size, total = time.perf_counter(), setting.batch_size, len(rows.labels)
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
    return felt, steps * size, compiling


def _responses(setting: Setting, chosen: HostArray, logits: HostArray, felt: Felt, radii: Radii) -> Responses:
    """What the examples felt, by condition."""
    gradients, losses, broken = (
        values[: CONDITIONS * len(chosen)].reshape(len(chosen), CONDITIONS).T
        for values in (felt.gradients, felt.losses, felt.broken)
    )
    clean = logits[chosen].astype(np.float64)
    right = np.arange(logits.shape[1]) == setting.data.labels[chosen, None]
    margins = clean.max(axis=1, where=right, initial=-np.inf) - clean.max(axis=1, where=~right, initial=-np.inf)
    return no_responses(1.0, 0.0, radii)._replace(
        gradients=gradients[0],
        margins=margins,
        largest_logit=max(float(np.max(np.abs(clean))), 1e-12),
        change_of_outputs=float(np.max(felt.changes)),
        standing=~broken[1:],
        losses=losses[1:],
        standing_after_one=~broken[0],
    )
