"""stAdv: a smooth flow that fools the model, by L-BFGS on a margin loss plus the flow's total variation.

The only part of the library that needs Optax (for L-BFGS): ``pip install optax``.

References:
    Xiao et al., "Spatially Transformed Adversarial Examples", ICLR 2018.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deformreg import _checks, fields
from deformreg._arrays import choose, finite_or_zero, scaled
from deformreg._families import identity
from deformreg.attacks.attack import Attack, Budget, Examples, LogitsFn, Search, labels_along
from deformreg.attacks.search import Keep, budget_of, check_ball, fresh, is_broken, record, used_share
from deformreg.balls import Ball
from deformreg.losses import margin
from deformreg.perturbations import Perturbation, flow
from deformreg.warping import Boundary

SUFFICIENT = 1e-4  # Armijo's condition: the share of the first-order decrease that a step must achieve
SMALLEST = 2.0**-20  # the step length at which a line search gives up


class Memory(NamedTuple):
    """A row of L-BFGS: the last accepted point, its value, the direction from it, and the trial step along it."""

    point: Array
    value: Array
    direction: Array
    slope: Array
    length: Array
    history: Any


def stadv(
    *,
    num_evaluations: int = 200,
    flow_weight: float = 0.05,
    confidence: float = 0.0,
    diagonal: bool = False,
    ball: Ball | None = None,
    boundary: Boundary = "edge",
    memory_size: int = 20,
    keep: Keep = "best",
    name: str | None = None,
) -> Attack:
    """Minimizes ``max(margin to success, -confidence) + flow_weight * total variation`` for each example.

    Every example has its own L-BFGS with a backtracking line search and stops once it has converged or spent its
    evaluations. The published attack does *not* bound the flow, it only penalizes its roughness, so a success rate
    means nothing without the norms; `ball` adds a bound.

    Args:
        num_evaluations: the maximum number of model calls (forward and backward) per example.
        flow_weight: weight of the total variation, per pixel; 0.05 as published.
        confidence: the margin in logits by which the wrong class must win.
        diagonal: whether the neighbourhood is the four diagonal pixels instead of the four adjacent ones, see
            `deformreg.fields.total_variation`.
        ball: a hard bound, `deformreg.linf` or `deformreg.pixelwise_l2` in pixels; the flow is projected before it is
            used. None for no bound.
        boundary: see `deformreg.warp`.
        memory_size: the number of pairs in L-BFGS's memory.
        keep: ``"best"`` goes on to the smoothest flow that succeeds, ``"any"`` stops at the first.
        name: for reports; None makes one.

    Returns:
        The attack; needs Optax.

    Raises:
        ImportError: Optax is not installed.
        TypeError: a count that is not an integer.
        ValueError: a number out of range, or another `keep`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> edge = lambda x: jnp.stack([x[:, 0, 1, 0], 0.75 - x[:, 0, 1, 0]], axis=1)  # class 0 where bright
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1) / 2
        >>> stadv(num_evaluations=20).run(edge, ramp, jnp.array([0]), jax.random.key(0)).success.tolist()
        [True]

    References:
        Xiao et al., ICLR 2018, see the module; equations 2 to 4.
        Liu and Nocedal, "On the Limited Memory BFGS Method for Large Scale Optimization", 1989.
    """
    if ball is not None:
        ball = check_ball(ball)
    num_evaluations = _checks.count("num_evaluations", num_evaluations)
    memory_size = _checks.count("memory_size", memory_size)
    _checks.non_negative("flow_weight", flow_weight)
    _checks.non_negative("confidence", confidence)
    _checks.choice("keep", keep, ("any", "best"))
    family = flow(boundary=boundary)
    plan = _Plan(family, ball, num_evaluations, flow_weight, confidence, diagonal, keep, _lbfgs(memory_size))
    return Attack(
        name or "stadv",
        family,
        Budget(None, "none", "pixels") if ball is None else budget_of(ball, family),
        None if ball is None else used_share(ball),
        partial(_begin, plan),
        partial(_step, plan),
        max_steps=num_evaluations,
        uses_gradients=True,
        settings={
            "num_evaluations": num_evaluations, "flow_weight": flow_weight, "confidence": confidence,
            "diagonal": diagonal, "keep": keep,
        },
    )  # fmt: skip


class _Plan(NamedTuple):
    """The arguments of `stadv` that its search keeps to."""

    family: Perturbation
    ball: Ball | None
    num_evaluations: int
    flow_weight: float
    confidence: float
    diagonal: bool
    keep: Keep
    lbfgs: Any

    def inside(self, params: Array) -> Array:
        """The fields projected into the ball, if there is one."""
        return params if self.ball is None else self.ball.project(params)


def _begin(plan: _Plan, examples: Examples) -> Search:
    zeros = identity(plan.family, examples.images)
    search = fresh(examples, zeros)
    none = jnp.zeros_like(search.losses)
    memory = Memory(zeros, none, zeros, none, jnp.ones_like(none), jax.vmap(plan.lbfgs.init)(zeros))
    return search._replace(memory=memory)


def _cost(params: Array, plan: _Plan, logits_fn: LogitsFn, examples: Examples) -> tuple[Array, tuple[Array, Array]]:
    """The summed costs; each example's, and whether it breaks the model."""
    field = plan.inside(params)
    logits = logits_fn(plan.family.apply(field, examples.images))
    here = examples._replace(labels=labels_along(plan.family, examples, field))
    gap = -here.criterion.margin(logits, here.labels) if here.targets is None else margin(logits, here.targets)
    # A tie between the label and the best wrong class is not yet a success: aim slightly beyond it.
    value = jnp.maximum(gap, -plan.confidence - 1e-3)
    value += plan.flow_weight * fields.total_variation(field, diagonal=plan.diagonal)
    return jnp.sum(value), (value, is_broken(logits, here))


def _step(plan: _Plan, logits_fn: LogitsFn, examples: Examples, search: Search) -> Search:
    params, memory = search.params, search.memory
    (_, (value, broken)), gradient = jax.value_and_grad(_cost, has_aux=True)(params, plan, logits_fn, examples)
    gradient = finite_or_zero(gradient)
    first = search.calls == 0
    # L-BFGS moves without a bound; the candidate to keep is the projected field.
    tried = search._replace(params=plan.inside(params))
    search = record(tried, -value, broken, keep=plan.keep)
    accepted = first | (value <= memory.value + SUFFICIENT * memory.length * memory.slope)
    after, converged = _turn(plan.lbfgs, memory, params, value, gradient)
    again = memory._replace(length=memory.length / 2)
    memory = choose(accepted, after, again)
    # Optax's L-BFGS computes in float64 where that is enabled; a loop's state keeps its types.
    memory = jax.tree.map(lambda leaf, before: leaf.astype(before.dtype), memory, search.memory)
    over = (accepted & converged) | (memory.length < SMALLEST) | (search.calls >= plan.num_evaluations)
    moved = memory.point + scaled(memory.direction, memory.length)
    return search._replace(params=moved, memory=memory, done=search.done | over)


def _lbfgs(memory_size: int) -> Any:
    try:
        import optax
    except ImportError:
        raise ImportError("stadv needs Optax's L-BFGS: pip install optax") from None
    return optax.scale_by_lbfgs(memory_size=memory_size)


def _turn(lbfgs: Any, memory: Memory, params: Array, value: Array, gradient: Array) -> tuple[Memory, Array]:
    """The memory after accepting `params`, with a new downhill direction, and whether the search has converged."""
    axes = tuple(range(1, params.ndim))
    preconditioned, history = jax.vmap(lbfgs.update)(gradient, memory.history, params)
    slope = -jnp.sum(gradient * preconditioned, axis=axes)
    downhill = slope < 0
    direction = -choose(downhill, preconditioned, gradient)
    steepest = -jnp.sum(gradient**2, axis=axes)
    slope = jnp.where(downhill, slope, steepest)
    return Memory(params, value, direction, slope, jnp.ones_like(value), history), steepest > -1e-12
