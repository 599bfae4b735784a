"""The diagnosis of a model: the red flags that need model passes of their own."""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from deformreg.attacks.attack import Attack, Examples, row_keys
from deformreg.criteria import Criterion
from deformreg.criteria.classification import criterion_or_classification
from deformreg.evaluation.flags.flag import Flag, raised
from deformreg.evaluation.flags.outputs import OUTPUT_FLAGS, observe_outputs
from deformreg.evaluation.flags.queries import QUERY_CALLS, QUERY_FLAGS, ObserveQueries, compile_queries
from deformreg.evaluation.flags.responses import (
    RESPONSE_CALLS,
    RESPONSE_FLAGS,
    Observe,
    compile_responses,
    half_side,
)
from deformreg.evaluation.outcomes import padded
from deformreg.evaluation.rows import HostArray
from deformreg.evaluation.suites import Suite
from deformreg.interop.host import NoGradients
from deformreg.perturbations import Perturbation, flow


class Diagnosis(Protocol):
    """A function that looks for red flags in a model.

    `images` (float[n, h, w, c], 128 by convention) and `labels` are a few examples; `radius` is the suite's.
    The model sees batches of `batch_size` rows only. It returns the flags and the number of model calls.
    """

    def __call__(
        self, logits_fn: Partial, images: HostArray, labels: HostArray, *, radius: Any, key: jax.Array, batch_size: int
    ) -> tuple[tuple[Flag, ...], int]: ...


def compile_diagnosis(suite: Suite, criterion: Criterion | None = None) -> Diagnosis:
    """Compiles a diagnosis once, for models and budgets that are diagnosed again and again.

    Args:
        suite: the diagnosis examines the family of the gradient attack with the largest budget, in the largest cube
            inside its ball; a flow of up to one pixel if there is none. Of a model without gradients it examines the
            family of any attack, and only how the outputs respond to random perturbations.
        criterion: when an output is broken; None is ``classification()``.

    Returns:
        The diagnosis.
    """

    criterion = criterion_or_classification(criterion)

    def family(name: str | None, radius: Any) -> Perturbation:
        if name is None:
            return flow()
        bounded = suite.member(name, radius).perturbation
        return bounded.unbounded or bounded  # larger budgets than its bound are tried

    @cache
    def observe(name: str | None) -> Observe:
        return compile_responses(lambda radius: family(name, radius))

    @cache
    def observe_queries(name: str | None) -> ObserveQueries:
        return compile_queries(lambda radius: family(name, radius))

    def diagnose(
        logits_fn: Partial, images: HostArray, labels: HostArray, *, radius: Any, key: jax.Array, batch_size: int
    ) -> tuple[tuple[Flag, ...], int]:
        seen = observe_outputs(logits_fn, images, batch_size, criterion)
        flags, calls = raised(OUTPUT_FLAGS, seen), seen.model_calls
        correct = ~np.asarray(criterion.broken(jnp.asarray(seen.logits), jnp.asarray(labels)))
        if not correct.any():
            return flags, calls
        # Full batches, by repetition: the model sees one shape.
        rows = padded(int(correct.sum()), batch_size)
        chosen = np.resize(np.flatnonzero(correct), rows)
        keys = row_keys(key, jnp.arange(rows))
        examples = Examples(jnp.asarray(images[chosen]), jnp.asarray(labels[chosen]), keys, criterion=criterion)
        attacks = suite(radius)
        name, size = _examined([attack for attack in attacks if attack.uses_gradients], images)
        try:
            felt = observe(name)(radius, logits_fn, examples, int(correct.sum()), size, batch_size)
        except NoGradients:
            name, size = _examined(attacks, images)
            answered = observe_queries(name)(radius, logits_fn, examples, seen.logits[correct], size, batch_size)
            return (*flags, *raised(QUERY_FLAGS, answered)), calls + QUERY_CALLS * rows
        return (*flags, *raised(RESPONSE_FLAGS, felt)), calls + RESPONSE_CALLS * rows

    return diagnose


def _examined(attacks: list[Attack], images: HostArray) -> tuple[str | None, float]:
    """The name of the attack with the largest cube inside its ball, and half the cube's side; one pixel if none has."""
    sizes = [(half_side(attack, images), attack.name) for attack in attacks]
    size, name = max(sizes, key=lambda entry: entry[0], default=(0.0, None))
    return (name, size) if size > 0 else (None, 1.0)
