"""Rotations and translations: the full grid, or the worst of k random ones.

References:
    Engstrom et al., "Exploring the Landscape of Spatial Robustness", ICML 2019. Gradients do not find the worst
    rotation reliably, so neither the grid nor the worst of k uses them.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from deformreg import _checks
from deformreg._arrays import entries_of
from deformreg._families import identity
from deformreg.attacks.attack import Attack, Budget, Examples, LogitsFn, Search
from deformreg.attacks.search import (
    Keep,
    Loss,
    check_choices,
    displacement_share,
    fresh,
    limit_displacement,
    plain,
    record,
    step_keys,
    try_out,
    used_share,
)
from deformreg.balls import linf
from deformreg.perturbations import Perturbation, affine
from deformreg.warping import Boundary


def rotation_translation(
    *,
    max_degrees: float = 30.0,
    max_pixels: float = 3.0,
    grid: tuple[int, int, int] | None = (31, 5, 5),
    num_draws: int | None = None,
    max_component: float | None = None,
    boundary: Boundary = "zeros",
    loss: Loss = "cross_entropy",
    keep: Keep = "any",
    name: str | None = None,
) -> Attack:
    """Rotates about the centre and translates; a candidate that breaks the model beats one with a higher loss.

    With ``boundary="zeros"`` the image moves on a black canvas, and content that leaves the image is lost. To keep it,
    pad the images with zeros beforehand, if the model accepts the larger size.

    Args:
        max_degrees: the largest rotation in either direction.
        max_pixels: the largest translation along either axis.
        grid: the number of candidates along (rotation, dy, dx), evenly spaced with both ends included; one candidate
            means zero. The default is the paper's 775. None tries `num_draws` random candidates instead.
        num_draws: random candidates, drawn separately for each example; only without a grid, where None is the
            paper's 10.
        max_component: also shrinks every candidate until no pixel moves further than this along either axis, in
            pixels: the threat model of the flow attacks under `deformreg.linf`.
        boundary: see `deformreg.warp`.
        loss: orders the candidates that do not break the model.
        keep: ``"any"`` stops at the first that breaks it, ``"best"`` tries all and keeps the worst (for training).
        name: for reports; None makes one.

    Returns:
        The attack; parameters float[n, 3]: rotation in radians, dy and dx in pixels. It uses no gradients.

    Raises:
        TypeError: a count that is not an integer.
        ValueError: a number out of range, an unknown `loss`, another `keep`, or `num_draws` beside a grid.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> attack = rotation_translation(grid=(1, 3, 3), max_pixels=1.0)
        >>> corner = lambda images: jnp.stack([images[:, 0, 0, 0], jnp.full(len(images), 0.5)], axis=1)
        >>> result = attack.run(corner, jnp.ones((1, 4, 4, 1)), jnp.array([0]), jax.random.key(0))
        >>> result.params.tolist()  # the first that moves black into the corner
        [[0.0, -1.0, -1.0]]

    References:
        Engstrom et al., ICML 2019, see the module.
    """
    _checks.non_negative("max_degrees", max_degrees)
    _checks.non_negative("max_pixels", max_pixels)
    check_choices(loss, keep, ("any", "best"))
    if grid is not None and num_draws is not None:
        raise ValueError(f"num_draws={num_draws} has no effect beside a grid: give grid=None with it")
    num_draws = _checks.count("num_draws", 10 if num_draws is None else num_draws)
    family = affine(boundary=boundary)
    if max_component is not None:
        _checks.non_negative("max_component", max_component)
        family = limit_displacement(family, max_component)
    limits = jnp.stack([jnp.float32(limit) for limit in (max_degrees * math.pi / 180, max_pixels, max_pixels)])
    table = None if grid is None else _grid(grid)
    plan = _Plan(family, limits, table, num_draws if table is None else len(table), loss, keep)
    bounds = {"max_degrees": plain(max_degrees), "max_pixels": plain(max_pixels), "max_component": plain(max_component)}
    if max_component is None:
        degrees, pixels = bounds["max_degrees"], bounds["max_pixels"]
        budget, size = Budget((degrees, pixels, pixels), "linf", "degrees, pixels, pixels"), used_share(linf(limits))
    else:
        budget = Budget(bounds["max_component"], "linf", "pixels")
        size = displacement_share(family, max_component)
    return Attack(
        name or (f"rotation-translation-{'grid' if grid else 'worst'}-{plan.candidates}"),
        family,
        budget,
        size,
        partial(_begin, plan),
        partial(_step, plan),
        max_steps=plan.candidates,
        uses_gradients=False,
        settings={
            **bounds,
            "grid": grid,
            "num_draws": num_draws if grid is None else None,
            "boundary": boundary,
            "keep": keep,
        },
        one_class=loss == "dlr",
    )


class _Plan(NamedTuple):
    """What a search keeps to: float[3] limits of rotation and translation, and the table of a grid, or None to draw."""

    family: Perturbation
    limits: Array
    table: np.ndarray[Any, Any] | None
    candidates: int
    loss: Loss
    keep: Keep


def _begin(plan: _Plan, examples: Examples) -> Search:
    return fresh(examples, identity(plan.family, examples.images))


def _step(plan: _Plan, logits_fn: LogitsFn, examples: Examples, search: Search) -> Search:
    params = _candidate(plan, examples, search.calls).astype(search.params.dtype)
    params = plan.family.constrain(params, examples.images)
    losses, broken = try_out(logits_fn, plan.family, plan.loss, examples, params)
    search = record(search._replace(params=params), losses, broken, keep=plan.keep)
    return search._replace(done=search.done | (search.calls >= plan.candidates))


def _candidate(plan: _Plan, examples: Examples, number: Array) -> Array:
    """float[n, 3]: each example's candidate `number`, int[n]."""
    if plan.table is not None:
        return plan.limits[None, :] * entries_of(jnp.asarray(plan.table), jnp.minimum(number, plan.candidates - 1))

    def draw(key: Array) -> Array:
        return jax.random.uniform(key, (3,), jnp.float32, -1, 1) * plan.limits

    return jax.vmap(draw)(step_keys(examples, number))


def _grid(counts: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    """Evenly spaced points of the unit cube."""
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in (_checks.count("grid", n) for n in counts)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float32)
