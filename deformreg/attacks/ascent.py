"""Projected ascent: the loop under the gradient attacks. It knows a ball and a function to ascend, but no images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg._arrays import aligned, choose, finite_or_zero
from deformreg.balls import Ball, Radius, against
from deformreg.perturbations import Params

Iterate = Literal["last", "best"]
"""Which point an ascent returns: the last one, or the one of the highest objective."""


class Ascent(NamedTuple):
    """The result of an ascent.

    Attributes:
        params: the returned point; inside the ball if the start was.
        values: float[n], the objective there.
    """

    params: Params
    values: Float[Array, " n"]


def uphill(
    params: Params, gradient: Params, ball: Ball, step_size: Radius, constrain: Callable[[Params], Params]
) -> Params:
    """One step along the ball's steepest direction, projected back."""
    sizes = partial(against, step_size, per_example=ball.per_example)
    moved = jax.tree.map(lambda leaf, d: leaf + sizes(leaf) * d, params, ball.steepest(gradient))
    return constrain(ball.project(moved))


def projected_ascent(
    objective: Callable[[Params], Array],
    params: Params,
    *,
    ball: Ball,
    step_size: Radius,
    num_steps: int,
    keep: Iterate = "last",
    constrain: Callable[[Params], Params] = lambda params: params,
) -> Ascent:
    """Ascends a function per example: steps along the ball's steepest direction, each projected back.

    Args:
        objective: ``params -> float[n]``, one value per example that depends on that example's parameters alone.
        params: the start, in the ball: a pytree of arrays whose first axis is the example.
        ball: norm and radius; its steepest direction decides between sign and normalized steps.
        step_size: in the ball's norm; an array broadcasts against the parameters, or holds one number per example for
            `deformreg.l2`.
        num_steps: at least 0; a Python integer.
        keep: ``"last"`` returns the last point, ``"best"`` the one of the highest objective, the start included.
        constrain: a further projection after the ball's, for example onto valid images.

    Returns:
        The points with their values. No step goes along a gradient that is not finite. It computes `num_steps`
        gradients and one more value, which the compiler drops where it is not used.

    Raises:
        TypeError: `num_steps` is not an integer.
        ValueError: a negative `step_size` or `num_steps`, or an unknown `keep`.

    Example:
        >>> import jax.numpy as jnp
        >>> from deformreg import linf
        >>> hill = lambda x: -jnp.sum((x - 1.0) ** 2, axis=1)
        >>> projected_ascent(hill, jnp.zeros((1, 2)), ball=linf(0.5), step_size=0.1, num_steps=9).params.tolist()
        [[0.5, 0.5]]

    References:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.
    """
    _checks.non_negative("step_size", step_size)
    num_steps = _checks.count("num_steps", num_steps, minimum=0)
    _checks.choice("keep", keep, get_args(Iterate))

    def total(params: Params) -> tuple[Array, Array]:
        values = objective(params)
        return jnp.sum(values), values

    def better(best: Ascent, params: Params, values: Array) -> Ascent:
        is_better = values > best.values
        return Ascent(choose(is_better, params, best.params), jnp.where(is_better, values, best.values))

    def step(_: Any, state: tuple[Params, Ascent]) -> tuple[Params, Ascent]:
        params, best = state
        (_, values), gradient = jax.value_and_grad(total, has_aux=True)(params)
        if keep == "best":
            best = better(best, params, values)
        return uphill(params, finite_or_zero(gradient), ball, step_size, constrain), best

    values = jax.eval_shape(objective, params)
    start = aligned(Ascent(params, jnp.full(values.shape, -jnp.inf, values.dtype)), values)
    params, best = jax.lax.fori_loop(0, num_steps, step, (start.params, start))
    values = objective(params)
    return Ascent(params, values) if keep == "last" else better(best, params, values)
