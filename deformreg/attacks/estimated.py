"""SPSA and NES: ascent along gradients that are estimated from queries.

References:
    Uesato et al., "Adversarial Risk and the Dangers of Evaluating Against Weak Attacks", ICML 2018 (SPSA).
    Ilyas et al., "Black-box Adversarial Attacks with Limited Queries and Information", ICML 2018 (NES).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deformreg import _checks
from deformreg._arrays import draw_leaves, finite_or_zero, scaled, spread
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
    sample_rows,
    step_keys,
    try_out,
    used_share,
)
from deformreg.balls import Ball
from deformreg.perturbations import Params, Perturbation


class Rule(NamedTuple):
    """The parts in which the two attacks differ.

    Attributes:
        draw: ``(key, shape, dtype) -> array``: a random direction for a finite difference.
        remember: ``(zeros, count) -> memory`` at the start of a search.
        turn: ``(gradient, memory) -> (direction, memory)``: the direction of the next step, in step sizes.
    """

    draw: Callable[[Array, Any, Any], Array]
    remember: Callable[[Any, int], Any]
    turn: Callable[[Any, Any], tuple[Any, Any]]


def spsa(
    *,
    ball: Ball,
    num_steps: int = 20,
    num_samples: int = 64,
    probe: float | None = None,
    step_size: float | None = None,
    perturbation: Perturbation | None = None,
    loss: Loss = "margin",
    keep: Keep = "any",
    name: str | None = None,
) -> Attack:
    """Adam along SPSA's gradient estimate: averaged differences along random sign vectors.

    Args:
        ball: see `deformreg.attacks.pgd`; its radius is a single number.
        num_steps: at least 1.
        num_samples: pairs of queries per step.
        probe: distance of a query from the current point, in the parameters' unit; None is a tenth of the radius.
        step_size: Adam's step size; None is a tenth of the radius.
        perturbation: the family; None is ``flow()``.
        loss: see `deformreg.attacks.pgd`; the published attack uses the margin.
        keep: see `deformreg.attacks.pgd`.
        name: for reports; None makes one.

    Returns:
        The attack; a step costs ``2 * num_samples + 1`` queries, and it uses no gradients.

    Raises:
        TypeError: a count that is not an integer.
        ValueError: a number out of range, or an unknown `loss` or `keep`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import linf
        >>> edge = lambda x: jnp.stack([x[:, 0, 1, 0], 0.75 - x[:, 0, 1, 0]], axis=1)  # class 0 where bright
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1) / 2
        >>> spsa(ball=linf(0.5), num_samples=8).run(edge, ramp, jnp.array([0]), jax.random.key(0)).success.tolist()
        [True]

    References:
        Uesato et al., ICML 2018, see the module.
    """

    rule = Rule(random_signs, lambda zeros, count: (zeros, zeros, jnp.zeros(count)), _adam)
    return _estimated(
        name or f"spsa-{num_steps}", rule, ball, num_steps, num_samples, probe, step_size, perturbation, loss, keep
    )


def nes(
    *,
    ball: Ball,
    num_steps: int = 40,
    num_samples: int = 50,
    probe: float | None = None,
    step_size: float | None = None,
    perturbation: Perturbation | None = None,
    loss: Loss = "cross_entropy",
    keep: Keep = "any",
    name: str | None = None,
) -> Attack:
    """Steepest ascent in the ball's norm along NES's gradient estimate: antithetic Gaussian queries.

    Args:
        ball: see `deformreg.attacks.pgd`; its radius is a single number.
        num_steps: at least 1.
        num_samples: antithetic pairs of queries per step.
        probe: standard deviation of the Gaussian, in the parameters' unit; None is a tenth of the radius.
        step_size: in the ball's norm; None is a tenth of the radius.
        perturbation: the family; None is ``flow()``.
        loss: see `deformreg.attacks.pgd`.
        keep: see `deformreg.attacks.pgd`.
        name: for reports; None makes one.

    Returns:
        The attack; a step costs ``2 * num_samples + 1`` queries, and it uses no gradients.

    Raises:
        TypeError: a count that is not an integer.
        ValueError: a number out of range, or an unknown `loss` or `keep`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import linf
        >>> edge = lambda x: jnp.stack([x[:, 0, 1, 0], 0.75 - x[:, 0, 1, 0]], axis=1)  # class 0 where bright
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1) / 2
        >>> nes(ball=linf(0.5), num_samples=8).run(edge, ramp, jnp.array([0]), jax.random.key(0)).success.tolist()
        [True]

    References:
        Ilyas et al., ICML 2018, see the module.
    """
    rule = Rule(jax.random.normal, lambda zeros, count: (), lambda gradient, memory: (ball.steepest(gradient), memory))
    return _estimated(
        name or f"nes-{num_steps}", rule, ball, num_steps, num_samples, probe, step_size, perturbation, loss, keep
    )


def _estimated(
    name: str, rule: Rule, ball: Ball, num_steps: int, num_samples: int, probe: float | None,
    step_size: float | None, perturbation: Perturbation | None, loss: Loss, keep: Keep,
) -> Attack:  # fmt: skip
    """Ascent along the average of ``(f(p + d) - f(p - d)) / (2 probe) * d / probe`` over random directions d."""
    ball = check_ball(ball, arrays=False)
    family = family_or_flow(perturbation)
    num_steps, num_samples = _checks.count("num_steps", num_steps), _checks.count("num_samples", num_samples)
    check_choices(loss, keep)
    length = ball.radius / 10 if step_size is None else step_size
    _checks.non_negative("step_size", length)
    if probe is not None:
        _checks.positive("probe", probe)
    reach = ball.radius / 10 if probe is None else probe
    plan = _Plan(rule, family, ball, num_steps, num_samples, reach, length, loss, keep)
    return Attack(
        name,
        family,
        budget_of(ball, family),
        used_share(ball),
        partial(_begin, plan),
        partial(_step, plan),
        calls_per_step=plan.calls,
        max_steps=num_steps + 1,
        uses_gradients=False,
        settings={"num_steps": num_steps, "num_samples": num_samples, "keep": keep},
        one_class=loss == "dlr",
    )


class _Plan(NamedTuple):
    """The arguments of `spsa` and `nes` that the search keeps to; `reach` is the distance of a query."""

    rule: Rule
    family: Perturbation
    ball: Ball
    num_steps: int
    num_samples: int
    reach: float | Array
    step_size: float | Array
    loss: Loss
    keep: Keep

    @property
    def calls(self) -> int:
        """Model calls of a step."""
        return 2 * self.num_samples + 1


def _begin(plan: _Plan, examples: Examples) -> Search:
    zeros = identity(plan.family, examples.images)
    return fresh(examples, zeros, plan.rule.remember(zeros, len(examples.images)))


def _step(plan: _Plan, logits_fn: LogitsFn, examples: Examples, search: Search) -> Search:
    params = search.params
    losses, broken = try_out(logits_fn, plan.family, plan.loss, examples, params)
    last = search.calls >= plan.num_steps * plan.calls
    eligible = last | (plan.keep != "last")
    search = record(search, losses, broken, keep=plan.keep, eligible=eligible, calls=plan.calls)
    gradient = _estimate(plan, logits_fn, examples, params, step_keys(examples, search.calls))
    direction, memory = plan.rule.turn(gradient, search.memory)
    moved = jax.tree.map(
        lambda leaf, d: leaf + jnp.asarray(plan.step_size, leaf.dtype) * d.astype(leaf.dtype), params, direction
    )
    moved = plan.family.constrain(plan.ball.project(moved), examples.images)
    return search._replace(params=moved, memory=memory, done=search.done | last)


def _estimate(plan: _Plan, logits_fn: LogitsFn, examples: Examples, params: Params, keys: Array) -> Params:
    """The gradient at `params`: slopes along random directions times these directions, averaged."""
    draw = partial(draw_leaves, lambda key, leaf: plan.rule.draw(key, leaf.shape, leaf.dtype))
    reach = plan.reach

    def add(sample: Array, total: Params) -> Params:
        directions = sample_rows(draw, jax.vmap(lambda key: jax.random.fold_in(key, sample))(keys), params)

        def probed(sign: int) -> Array:
            at = jax.tree.map(lambda p, d: p + jnp.asarray(sign * reach, p.dtype) * d, params, directions)
            return try_out(logits_fn, plan.family, plan.loss, examples, at)[0]

        # In a ball of radius zero `reach` is zero and the quotient is not finite.
        slope = finite_or_zero((probed(1) - probed(-1)) / (2 * reach * plan.num_samples))
        return jax.tree.map(jnp.add, total, scaled(directions, slope))

    return jax.lax.fori_loop(0, plan.num_samples, add, jax.tree.map(jnp.zeros_like, params))


def _adam(gradient: Params, memory: Any) -> tuple[Params, Any]:
    """Adam's direction, in step sizes."""
    mean, square, count = memory
    count = count + 1
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradient)
    square = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g**2, square, gradient)

    def direction(m: Array, s: Array) -> Array:
        t = spread(count, m)
        return (m / (1 - 0.9**t)) / (jnp.sqrt(s / (1 - 0.999**t)) + 1e-8)

    return jax.tree.map(direction, mean, square), (mean, square, count)
