"""Red flags that need no gradients: a model's outputs under random perturbations of the examined budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from deformreg._programs import jitted
from deformreg.attacks.attack import Examples
from deformreg.attacks.search import sample_rows, step_keys
from deformreg.evaluation.data import HostArray
from deformreg.evaluation.flags.flag import Flag
from deformreg.evaluation.flags.outputs import changes
from deformreg.evaluation.flags.responses import identity_changes_the_loss
from deformreg.noise import uniform
from deformreg.perturbations import Perturbation

DRAWS = 5
QUERY_CALLS = 1 + DRAWS


class Queries(NamedTuple):
    """How correctly classified examples respond to perturbations of one family, without gradients.

    Attributes:
        logits: float[1 + DRAWS, n, ...], at the zero perturbation, then at random ones.
        change_of_images: the largest change that the zero perturbation makes to the images.
        change_of_outputs: and to the logits.
        radius: the examined budget, per component.
    """

    logits: HostArray
    change_of_images: float
    change_of_outputs: float
    radius: float

    @property
    def largest_logit(self) -> float:
        """The largest absolute logit, above zero."""
        return float(np.abs(self.logits).max(where=np.isfinite(self.logits), initial=1e-12))


ObserveQueries = Callable[[Any, Partial, Examples, HostArray, float, int], Queries]
"""``(suite_radius, logits_fn, examples, clean_logits, radius, batch_size) -> Queries``: the examples are a multiple of
`batch_size`, those with clean logits are observed; `radius` is the examined budget."""


def compile_queries(make: Callable[[Any], Perturbation]) -> ObserveQueries:
    """Jits the observation of a family, which is made from a suite's (traced) radius: it compiles once per shape."""

    @jitted
    def perturbed(at: Any, logits_fn: Partial, rows: Examples, size: Any, number: Any) -> tuple[jax.Array, jax.Array]:
        family = make(at)
        zeros = family.init(rows.images)
        drawn = sample_rows(uniform(1.0), step_keys(rows, jnp.full(len(rows.images), number)), zeros)
        params = jax.tree.map(lambda leaf: leaf * size.astype(leaf.dtype), drawn)
        images = family.apply(family.constrain(params, rows.images), rows.images)
        return logits_fn(images), jnp.abs(images - rows.images).reshape(len(images), -1).max(axis=1)

    def observe(
        at: Any, logits_fn: Partial, rows: Examples, clean_logits: HostArray, radius: float, batch_size: int
    ) -> Queries:
        count = len(clean_logits)
        starts = range(0, len(rows.images), batch_size)
        batches = [jax.tree.map(lambda leaf, a=a: leaf[a : a + batch_size], rows) for a in starts]

        def with_draw(number: int) -> tuple[HostArray, HostArray]:
            size = jnp.float32(radius if number else 0)  # draw 0 is the zero perturbation
            logits, moved = zip(*(perturbed()(at, logits_fn, batch, size, number) for batch in batches), strict=True)
            return np.concatenate(logits)[:count].astype(np.float64), np.concatenate(moved)[:count]

        logits, moved = zip(*(with_draw(number) for number in range(1 + DRAWS)), strict=True)
        return Queries(np.stack(logits), float(moved[0].max()), float(changes(logits[0], clean_logits).max()), radius)

    return observe


def outputs_do_not_respond(queries: Queries) -> Flag | None:
    """Flags outputs that stay the same under every random perturbation, on more than 5 % of the examples."""
    moved = changes(queries.logits, queries.logits[0])
    moved = moved.max(axis=(0, *range(2, moved.ndim)))
    share = float((moved <= 1e-6 * queries.largest_logit).mean())
    if share <= 0.05:
        return None
    return Flag(
        "outputs_do_not_respond",
        "Random perturbations of the full budget change no output: hard labels, rounded outputs or a cache. Attacks "
        "without gradients see no progress.",
        {"share_of_examples": share, "draws": DRAWS, "radius": queries.radius},
    )


QUERY_FLAGS = (identity_changes_the_loss, outputs_do_not_respond)
