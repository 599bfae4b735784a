"""The diagnosis of a model: the red flags that need model passes of their own, within a fifth of the model calls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from deformreg.evaluation.flags.responses import CONDITIONS, Probe, Responses, Rows, compile_probe, half_side
from deformreg.evaluation.outcomes import AttackOutcome, Progress, Setting, Spent
from deformreg.evaluation.rows import HostArray
from deformreg.evaluation.suites import Suite
from deformreg.perturbations import Perturbation, flow

MOST_EXAMPLES = 128
MOST_STEPS = 20
FEWEST_STEPS = 5  # fewer say nothing about a model that resists
BROKEN_BY_GRADIENTS = 0.95  # of the examples: the gradients work


class Diagnosis(Protocol):
    """A function that looks for red flags in how a model responds to perturbations, after the attacks of a suite.

    `correct` (bool[n]) are the examples to look at, `logits` the clean pass, `radius` the suite's, and `calls` the
    model calls to spend: at least one batch takes `FEWEST_STEPS`.
    """

    def __call__(
        self, setting: Setting, outcomes: Sequence[AttackOutcome], correct: HostArray, logits: HostArray, *,
        radius: Any, calls: int,
    ) -> tuple[Responses, Spent]: ...  # fmt: skip


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
        return compile_probe(lambda radius: family(name, radius))

    @cache
    def change_of_images(name: str | None) -> Any:
        def largest_change(radius: Any, images: jax.Array) -> jax.Array:
            examined = family(name, radius)
            return jnp.max(jnp.abs(examined.apply(examined.init(images), images) - images))

        return jax.jit(largest_change)

    def diagnose(
        setting: Setting, outcomes: Sequence[AttackOutcome], correct: HostArray, logits: HostArray, *,
        radius: Any, calls: int,
    ) -> tuple[Responses, Spent]:  # fmt: skip
        started = time.perf_counter()
        data, size = setting.data, setting.batch_size
        attacks = suite(radius)
        side, name = max(((half_side(attack, data.images), attack.name) for attack in attacks), key=lambda pair: pair[0])
        examined, side = (name, side) if side > 0 else (None, 1.0)
        radii = _radii(side, family(examined, radius), data.images)
        moved = float(change_of_images(examined)(radius, data.at(np.resize(np.arange(len(logits)), size)).images))
        share, resisting = _resisting(outcomes, correct)
        if share <= 1 - BROKEN_BY_GRADIENTS:
            return _nothing_felt(share, moved, radii), Spent(0, time.perf_counter() - started)
        steps = int(np.clip(calls // size - 1, FEWEST_STEPS, MOST_STEPS))
        count = int(np.clip(calls // size // (steps + 1) * size // CONDITIONS, 1, min(MOST_EXAMPLES, len(resisting))))
        chosen = resisting[np.linspace(0, len(resisting) - 1, count).astype(int)]
        rows = _rows(setting, chosen, logits, radii, steps)
        run = probe(examined)
        compiling = time.perf_counter()
        first = jax.tree.map(lambda leaf: leaf[:size], rows)
        jax.block_until_ready(run(radius, setting.logits_fn, first._replace(steps=first.steps * 0 - 1)))
        compiled = time.perf_counter()
        parts = []
        standing = float((correct & ~np.any([outcome.broken_mask for outcome in outcomes], axis=0)).mean())
        for at in range(0, len(rows.labels), size):
            batch = jax.tree.map(lambda leaf, at=at: leaf[at : at + size], rows)
            parts.append(jax.device_get(run(radius, setting.logits_fn, batch)._replace(params=None)))
            if setting.progress is not None:
                finished = min(count, (at + size) // CONDITIONS)
                setting.progress(Progress("diagnosis", finished, count, standing))
        felt = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: CONDITIONS * count], *(
            part._replace(calls=None) for part in parts
        ))  # fmt: skip
        by_condition = jax.tree.map(lambda leaf: leaf.reshape(count, CONDITIONS).T, felt)
        right = np.arange(logits.shape[1]) == data.labels[chosen, None]
        clean = logits[chosen].astype(np.float64)
        margins = clean.max(axis=1, where=right, initial=-np.inf) - clean.max(axis=1, where=~right, initial=-np.inf)
        responses = Responses(
            share=share,
            gradients=by_condition.gradients[0],
            margins=margins,
            largest_logit=max(float(np.max(np.abs(clean))), 1e-12),
            change_of_images=moved,
            change_of_outputs=float(np.max(felt.changes)),
            radii=radii,
            standing=~by_condition.broken[1:],
            losses=by_condition.losses[1:],
            standing_after_one=~by_condition.broken[0],
        )
        spent = sum(int(part.calls) for part in parts) * size
        seconds = time.perf_counter() - started - (compiled - compiling)
        return responses, Spent(spent, seconds, compiled - compiling)

    return diagnose


def _radii(side: float, family: Perturbation, images: HostArray) -> tuple[float, float, float, float]:
    """The budgets to try; the last one allows nearly anything."""
    # A flow of half the image reaches any pixel; other families may use the whole range of the images.
    spread = float(images.max() - images.min())
    anything = max(images.shape[1:3]) / 2 if family.field is not None else max(spread, 1e-3)
    return side, 2 * side, 4 * side, max(anything, 4 * side)


def _resisting(outcomes: Sequence[AttackOutcome], correct: HostArray) -> tuple[float, HostArray]:
    """The examples that no gradient attack broke, and their share of those tried; all if there is no such attack."""
    gradients = [outcome for outcome in outcomes if outcome.uses_gradients]
    tried = np.any([outcome.attacked_mask for outcome in gradients], axis=0) if gradients else correct
    resisting = tried & ~np.any([outcome.broken_mask for outcome in gradients], axis=0) if gradients else correct
    return float(resisting.sum() / max(tried.sum(), 1)), np.flatnonzero(resisting)


def _rows(
    setting: Setting, chosen: HostArray, logits: HostArray, radii: tuple[float, ...], steps: int
) -> Rows:
    """Five rows for every chosen example, in full batches: the last one is filled up by repetition."""
    count = -(-len(chosen) * CONDITIONS // setting.batch_size) * setting.batch_size
    at = np.resize(np.repeat(chosen, CONDITIONS), count)
    sizes = np.resize(np.array([radii[0], *radii], np.float32), count)
    shares = np.resize(np.array([1.0] + 4 * [max(2.5 / steps, 0.25)], np.float32), count)
    numbers = np.resize(np.array([1] + 4 * [steps], np.int32), count)
    data = setting.data.at(at)
    return Rows(data.images, data.labels, logits[at], sizes, sizes * shares, numbers)


def _nothing_felt(share: float, change_of_images: float, radii: tuple[float, float, float, float]) -> Responses:
    """Responses of no examples."""
    nothing = np.zeros(0)
    masks = np.zeros((4, 0), bool)
    return Responses(share, nothing, nothing, 1.0, change_of_images, 0.0, radii, masks, masks * 1.0, masks[0])
