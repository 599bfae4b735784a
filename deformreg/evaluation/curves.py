"""Robust accuracy at increasing budgets: the accuracy at one radius says little about the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from deformreg import _checks
from deformreg.attacks.attack import LogitsFn
from deformreg.evaluation.data import HostArray, OnDemand
from deformreg.evaluation.evaluator import Evaluator
from deformreg.evaluation.flags import Flag
from deformreg.evaluation.outcomes import ProgressCallback, Recall
from deformreg.evaluation.suites import Suite
from deformreg.statistics import mean_minimal_displacement, wilson_interval


class Curve(NamedTuple):
    """Robust accuracy against the budget.

    Attributes:
        examples: number of examples.
        radii: increasing, from 0.
        accuracies: at each radius, over all examples; the first is the clean accuracy.
        intervals: their 95 % Wilson intervals.
        mean_minimal_displacement: see `deformreg.statistics.mean_minimal_displacement`; restricted to the last radius.
        smallest_radii: float[n], for each example the smallest radius at which it is broken: 0 for a clean error,
            infinite if none broke it.
        flags: the red flags raised at any radius, each once.
        model_calls: of everything.
        seconds: of everything, compiling included.
    """

    examples: int
    radii: tuple[float, ...]
    accuracies: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    mean_minimal_displacement: float
    smallest_radii: HostArray
    flags: tuple[Flag, ...]
    model_calls: int
    seconds: float


def accuracy_curve(
    run: Evaluator,
    logits_fn: LogitsFn,
    images: ArrayLike | OnDemand,
    labels: ArrayLike,
    radii: Sequence[float],
    *,
    key: jax.Array,
    known: ArrayLike | None = None,
    progress: ProgressCallback | None = None,
    recall: Recall | None = None,
) -> Curve:
    """Evaluates a model at increasing radii.

    The attacks' balls are nested: what breaks an example at one radius breaks it at every larger one. An example is
    therefore attacked only until it is broken, and the curve never rises. All radii share one compilation.

    Args:
        run: `deformreg.evaluator` of a suite, for example of `deformreg.evaluation.suites.quick`; best with
            ``diagnosis=False``, since one diagnosis is enough.
        logits_fn: ``images -> logits[n, classes]``.
        images: float[n, h, w, c], or `OnDemand`.
        labels: int[n], or what the evaluator's criterion asks for.
        radii: above 0, increasing; in pixels for the suites.
        key: a JAX random key.
        known: float[n], for each example a radius at which it is known to be broken, infinite if there is none; from
            that radius on it counts as broken and is not attacked.
        progress: called with a `Progress` whenever examples are finished.
        recall: called for each attack at each radius, in order, as in `deformreg.evaluate`.

    Returns:
        The curve; its first point is the clean accuracy at radius 0.

    Raises:
        TypeError: a suite in place of an evaluator, or `radii` that are no list.
        ValueError: no radii, radii that do not increase from above 0, or `known` of another shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg.evaluation import evaluator, suites
        >>> edge = lambda x: jnp.stack([x[:, 0, 1, 0], 0.75 - x[:, 0, 1, 0]], axis=1)  # class 0 where bright
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1) / 2  # a quarter of a pixel to the left crosses
        >>> run = evaluator(suites.quick, diagnosis=False)
        >>> curve = accuracy_curve(run, edge, ramp, jnp.array([0]), [0.2, 0.4], key=jax.random.key(0))
        >>> curve.accuracies, round(curve.mean_minimal_displacement, 3)
        ((1.0, 1.0, 0.0), 0.3)
    """
    radii = _checks.increasing("radii", radii, from_zero=False)
    if isinstance(run, Suite):
        raise TypeError("run must be an evaluator, got a suite: give deformreg.evaluator(suite, diagnosis=False)")
    images = images if isinstance(images, OnDemand) else _checks.images_on_host(images)
    count = len(images)
    smallest = np.full(count, np.inf) if known is None else np.array(known, np.float64)
    if smallest.shape != (count,) or not (smallest >= 0).all():
        raise ValueError(f"known must be float of shape ({count},), at least 0, got {_checks.described(known)}")
    calls, seconds, flags = 0, 0.0, dict[str, Flag]()
    for number, radius in enumerate(radii):
        evaluation = run(
            logits_fn, images, labels, radius=radius, broken=smallest <= radius,
            key=jax.random.fold_in(key, number), progress=progress, recall=recall,
        )  # fmt: skip
        smallest[~evaluation.correct_mask] = 0
        smallest[(smallest > radius) & ~evaluation.standing_mask] = radius
        calls += evaluation.model_calls
        seconds += evaluation.seconds
        flags = {flag.name: flag for flag in evaluation.flags} | flags
    right = [int((smallest > radius).sum()) for radius in (0.0, *radii)]
    accuracies = tuple(count / len(smallest) for count in right)
    return Curve(
        examples=len(smallest),
        radii=(0.0, *radii),
        accuracies=accuracies,
        intervals=tuple(wilson_interval(count, len(smallest)) for count in right),
        mean_minimal_displacement=mean_minimal_displacement((0.0, *radii), accuracies),
        smallest_radii=smallest,
        flags=tuple(flags.values()),
        model_calls=calls,
        seconds=seconds,
    )
