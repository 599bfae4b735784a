"""Projected gradient ascent as an attack value: the released protocol by default, with restarts on request.

References:
    Xia and Li, "Improving Resistance to Adversarial Deformations by Regularizing Gradients", Neurocomputing 455, 2021.
    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deformreg import _checks
from deformreg._families import family_or_flow, identity
from deformreg.attacks.ascent import uphill
from deformreg.attacks.attack import Attack, Examples, LogitsFn, Search
from deformreg.attacks.search import (
    Keep,
    Loss,
    Start,
    budget_of,
    check_ball,
    check_choices,
    differentiate,
    fresh,
    plain,
    record,
    sample_start,
    started_anew,
    used_share,
)
from deformreg.balls import Ball, Radius
from deformreg.perturbations import Params, Perturbation


def pgd(
    *,
    ball: Ball,
    num_steps: int,
    step_size: Radius | None = None,
    perturbation: Perturbation | None = None,
    start: Start = "zero",
    restarts: int = 1,
    loss: Loss = "cross_entropy",
    keep: Keep = "last",
    name: str | None = None,
) -> Attack:
    """Multi-step projected gradient ascent; with ``perturbation=additive(...)`` the classic pixel attack.

    The defaults are the protocol of the released code of flow gradient regularization: zero start, steps of
    ``radius / num_steps``, last iterate. ``start="random", restarts=5, keep="any"`` is stricter.

    Args:
        ball: `deformreg.linf`, `deformreg.l2` or `deformreg.pixelwise_l2`, its radius in the family's unit (pixels
            for flows), the same for every example.
        num_steps: gradient steps per restart, at least 0.
        step_size: in the ball's norm. None is ``radius / num_steps`` for a single zero start and 2.5 times that with
            random starts, to cross the ball; with ``keep="any"`` at least ``radius / 4``.
        perturbation: the family; None is ``flow()``.
        start: ``"zero"``, ``"random"`` (uniform in the ball) or a law of `deformreg.noise`.
        restarts: the number of starts, at least 1; after a zero start the others are random in the ball.
        loss: ``"cross_entropy"``, ``"margin"``, ``"dlr"`` or a function ``(logits, labels) -> losses[n]``.
        keep: ``"last"`` iterate of each start, the ``"best"``, or ``"any"`` iterate that breaks the model, which ends
            the example's search.
        name: for reports; None makes one.

    Returns:
        The attack. It spends at most ``restarts * (num_steps + 1)`` model calls on an example.

    Raises:
        TypeError: `num_steps` or `restarts` is not an integer.
        ValueError: a number out of range, or an unknown `start`, `loss` or `keep`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import linf
        >>> edge = lambda x: jnp.stack([x[:, 0, 1, 0], 0.75 - x[:, 0, 1, 0]], axis=1)  # class 0 where bright
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1) / 2
        >>> attack = pgd(ball=linf(0.5), num_steps=5)
        >>> attack.run(edge, ramp, jnp.array([0]), jax.random.key(0)).success.tolist()
        [True]
    """
    ball = check_ball(ball)
    family = family_or_flow(perturbation)
    num_steps = _checks.count("num_steps", num_steps, minimum=0)
    restarts = _checks.count("restarts", restarts)
    check_choices(loss, keep)
    if not callable(start):
        _checks.choice("start", start, ("zero", "random"))
    length = _step_size(ball, num_steps, start, restarts, keep) if step_size is None else step_size
    _checks.non_negative("step_size", length)
    plan = _Plan(family, ball, num_steps, length, start, restarts, loss, keep)
    return Attack(
        name or f"pgd-{num_steps}" + (f"x{restarts}" if restarts > 1 else ""),
        family,
        budget_of(ball, family),
        used_share(ball),
        partial(_begin, plan),
        partial(_step, plan),
        max_steps=restarts * (num_steps + 1),
        uses_gradients=True,
        settings={
            "num_steps": num_steps,
            "step_size": plain(length),
            "start": start if isinstance(start, str) else "law",
            "restarts": restarts,
            "loss": loss if isinstance(loss, str) else "function",
            "keep": keep,
        },
        one_class=loss == "dlr",
    )


class _Plan(NamedTuple):
    """The arguments of `pgd` that its search keeps to."""

    family: Perturbation
    ball: Ball
    num_steps: int
    step_size: Radius
    start: Start
    restarts: int
    loss: Loss
    keep: Keep


def _step_size(ball: Ball, num_steps: int, start: Start, restarts: int, keep: Keep) -> Radius:
    """The default step size."""
    crossing = 1.0 if start == "zero" and restarts == 1 else 2.5
    # With "any", long steps break an example early, and an evaluation gives its row to the next one: 100 steps of a
    # quarter of the radius break as many images as steps of a twentieth, in 30 to 88 % of the calls (measured).
    return ball.radius * max(crossing / max(num_steps, 1), 0.25 if keep == "any" else 0.0)


def _draw(plan: _Plan, examples: Examples, zeros: Params, restart: Array) -> Params:
    """The random start number `restart`, int[n]."""
    law = plan.start if callable(plan.start) else plan.ball.sample
    return sample_start(plan.family, plan.ball, law, examples, zeros, restart)


def _begin(plan: _Plan, examples: Examples) -> Search:
    zeros = identity(plan.family, examples.images)
    if plan.start == "zero":
        return fresh(examples, zeros)
    return fresh(examples, _draw(plan, examples, zeros, jnp.zeros(len(examples.images), jnp.int32)))


def _step(plan: _Plan, logits_fn: LogitsFn, examples: Examples, search: Search) -> Search:
    params = search.params
    tried = differentiate(logits_fn, plan.family, plan.loss, examples, params)
    restart, iterate = search.calls // (plan.num_steps + 1), search.calls % (plan.num_steps + 1)
    over = iterate == plan.num_steps
    eligible = over if plan.keep == "last" else True
    search = record(search, tried.losses, tried.broken, keep=plan.keep, eligible=eligible)
    moved = uphill(
        params, tried.gradient, plan.ball, plan.step_size, lambda moved: plan.family.constrain(moved, examples.images)
    )
    if plan.restarts > 1:
        zeros = jax.tree.map(jnp.zeros_like, params)
        moved = started_anew(over, lambda: _draw(plan, examples, zeros, restart + 1), moved)
    return search._replace(params=moved, done=search.done | (over & (restart == plan.restarts - 1)))
