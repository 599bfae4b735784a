"""Square, a query-efficient random search, on flow fields or pixels.

References:
    Andriushchenko et al., "Square Attack: a Query-Efficient Black-Box Adversarial Attack via Random Search", ECCV 2020.
"""

from __future__ import annotations

import operator
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from deformreg import _checks
from deformreg._arrays import entries_of
from deformreg._families import family_or_flow, identity
from deformreg.attacks.attack import Attack, Examples, LogitsFn, Search
from deformreg.attacks.search import (
    Keep,
    Loss,
    budget_of,
    check_ball,
    check_choices,
    fresh,
    random_signs,
    record,
    step_keys,
    try_out,
    used_share,
)
from deformreg.balls import Ball
from deformreg.perturbations import Perturbation

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # in a search of 10,000 queries


def window_sides(num_queries: int, sizes: tuple[int, ...], share: float) -> np.ndarray[Any, Any]:
    """int32[num_queries, axes]: the sides of the window at each query.

    Its area starts at `share` of the image and is repeatedly halved. The sides are equal, but where an axis is shorter,
    the others make up for it.
    """
    at = np.arange(num_queries) * 10_000 // num_queries
    shares = share * 0.5 ** np.searchsorted(np.array(HALVINGS), at, side="left")
    areas = reduce(operator.mul, sizes, shares)
    sides = np.empty((num_queries, len(sizes)))
    for left, axis in zip(range(len(sizes), 0, -1), np.argsort(sizes), strict=True):
        sides[:, axis] = np.minimum(areas ** (1 / left), sizes[axis])
        areas = areas / sides[:, axis]
    return np.clip(np.rint(sides), 1, sizes).astype(np.int32)


def square(
    *,
    ball: Ball,
    num_queries: int = 1000,
    share: float = 0.8,
    perturbation: Perturbation | None = None,
    loss: Loss = "margin",
    keep: Keep = "any",
    name: str | None = None,
) -> Attack:
    """Random search over squares: each query moves one window of every channel to the boundary, kept if better.

    The search starts from vertical stripes (in volumes from planes across the last axis, in signals from samples). In
    signals the windows are intervals, in volumes cubes; on elongated images, a window too long for one axis extends
    along the others. Windows, signs and stripes are drawn for each example.

    Args:
        ball: see `deformreg.attacks.pgd`; the published attack uses `deformreg.linf`.
        num_queries: forward passes per example, that of the start included; the schedule of window sizes is scaled to
            it.
        share: area of the first window as a share of the image, in (0, 1].
        perturbation: the family, parameters ``[n, h, w, k]``, for signals and volumes likewise; None is ``flow()``,
            whose channels are dy and dx.
        loss: see `deformreg.attacks.pgd`; the published attack uses ``"margin"``.
        keep: ``"any"`` stops at success, ``"best"`` spends all queries.
        name: for reports; None makes one.

    Returns:
        The attack; it uses no gradients.

    Raises:
        TypeError: `num_queries` is not an integer.
        ValueError: a number out of range, an unknown `loss`, or another `keep`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import linf
        >>> edge = lambda x: jnp.stack([x[:, 0, 1, 0], 0.75 - x[:, 0, 1, 0]], axis=1)  # class 0 where bright
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1) / 2
        >>> square(ball=linf(0.5)).run(edge, ramp, jnp.array([0]), jax.random.key(0)).success.tolist()
        [True]

    References:
        Andriushchenko et al., ECCV 2020, see the module.
    """
    ball = check_ball(ball, per_example=False)
    family = family_or_flow(perturbation)
    num_queries = _checks.count("num_queries", num_queries)
    check_choices(loss, keep, ("any", "best"))
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")

    plan = _Plan(family, ball, num_queries, share, loss, keep)
    return Attack(
        name or f"square-{num_queries}",
        family,
        budget_of(ball, family),
        used_share(ball),
        partial(_begin, plan),
        partial(_step, plan),
        max_steps=num_queries,
        uses_gradients=False,
        settings={"num_queries": num_queries, "share": share, "keep": keep},
        one_class=loss == "dlr",
    )


class _Plan(NamedTuple):
    """The arguments of `square` that its search keeps to."""

    family: Perturbation
    ball: Ball
    num_queries: int
    share: float
    loss: Loss
    keep: Keep


def _begin(plan: _Plan, examples: Examples) -> Search:
    """Starts at stripes along the last spatial axis, of random signs, on the ball's boundary."""
    zeros = identity(plan.family, examples.images)
    *others, width, channels = zeros.shape[1:]

    def stripes(key: Array) -> Array:
        return random_signs(key, (*(1 for _ in others), width, channels), zeros.dtype)

    start = zeros + plan.ball.radius * jax.vmap(stripes)(examples.keys)
    return fresh(examples, plan.family.constrain(plan.ball.project(start), examples.images))


def _step(plan: _Plan, logits_fn: LogitsFn, examples: Examples, search: Search) -> Search:
    losses, broken = try_out(logits_fn, plan.family, plan.loss, examples, search.params)
    search = record(search, losses, broken, keep=plan.keep)
    sides = jnp.asarray(window_sides(plan.num_queries, search.kept.shape[1:-1], plan.share))
    keys = step_keys(examples, search.calls)
    window = entries_of(sides, jnp.minimum(search.calls, plan.num_queries - 1))
    proposed = jax.vmap(partial(_propose, plan.ball))(keys, search.kept, window)
    proposed = plan.family.constrain(plan.ball.project(proposed), examples.images)
    return search._replace(params=proposed, done=search.done | (search.calls >= plan.num_queries))


def _propose(ball: Ball, key: Array, kept: Array, window: Array) -> Array:
    """One example's best parameters, with a random window of these sides moved by twice the radius either way."""
    *sizes, channels = kept.shape
    corner_key, sign_key = jax.random.split(key)
    corner = jax.random.uniform(corner_key, (len(sizes),), jnp.float32) * (jnp.array(sizes) - window + 1).astype(
        jnp.float32
    )
    offsets = [jnp.arange(size) - start for size, start in zip(sizes, jnp.floor(corner).astype(jnp.int32), strict=True)]
    along = [(offset >= 0) & (offset < window[axis]) for axis, offset in enumerate(offsets)]
    inside = reduce(jnp.logical_and, jnp.meshgrid(*along, indexing="ij"))[..., None]
    signs = random_signs(sign_key, (*(1 for _ in sizes), channels), kept.dtype)
    return kept + jnp.where(inside, 2 * jnp.asarray(ball.radius, kept.dtype) * signs, 0)
