"""stAdv: a smooth flow that fools the model, by L-BFGS on a margin loss plus the flow's total variation.

References:
    Xiao et al., "Spatially Transformed Adversarial Examples", ICLR 2018.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deformreg import _checks, fields
from deformreg.attacks.ascent import choose, spread
from deformreg.attacks.attack import (
    Attack,
    Examples,
    Keep,
    LogitsFn,
    Search,
    finite_or_zero,
    fresh,
    is_broken,
    record,
)
from deformreg.attacks.budget import Budget, budget_of, used_share
from deformreg.balls import Ball
from deformreg.losses import margin
from deformreg.perturbations import flow
from deformreg.warping import Boundary

SUFFICIENT = 1e-4  # Armijo: the share of the first-order decrease that a step must bring
SMALLEST = 2.0**-20  # of a step, before a search is given up


class Memory(NamedTuple):
    """An L-BFGS row: the last accepted point, its value, the direction from it, the trial step along it."""

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
    """Minimizes ``max(margin to success, -confidence) + flow_weight * total variation`` for each example by itself.

    Every example has its own L-BFGS with a backtracking line search; it is frozen once it has converged or spent its
    evaluations. As published there is *no* bound on the flow, only the weight on its roughness, so success rates mean
    nothing without the norms beside them; `ball` adds a bound.

    Args:
        num_evaluations: model calls (forward and backward) per example at most.
        flow_weight: of the total variation, per pixel; 0.05 as published.
        confidence: in logits, by which the wrong class shall win.
        diagonal: the published neighbourhood has two readings, see `deformreg.fields.total_variation`: the four
            adjacent pixels (default), or the four diagonal ones.
        ball: a hard bound, `deformreg.linf` or `deformreg.pixelwise_l2` in pixels; the flow is projected before it is
            used. None for none.
        boundary: see `deformreg.warp`.
        memory_size: pairs that L-BFGS remembers.
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
    num_evaluations = _checks.count("num_evaluations", num_evaluations)
    memory_size = _checks.count("memory_size", memory_size)
    _checks.non_negative("flow_weight", flow_weight)
    _checks.non_negative("confidence", confidence)
    _checks.choice("keep", keep, ("any", "best"))
    lbfgs = _lbfgs(memory_size)
    family = flow(boundary=boundary)

    def inside(params: Array) -> Array:
        return params if ball is None else ball.project(params)

    def begin(examples: Examples) -> Search:
        zeros = family.init(examples.images)
        search = fresh(examples, zeros)
        none = jnp.zeros_like(search.losses)
        memory = Memory(zeros, none, zeros, none, jnp.ones_like(none), jax.vmap(lbfgs.init)(zeros))
        return search._replace(memory=memory)

    def cost(params: Array, logits_fn: LogitsFn, examples: Examples) -> tuple[Array, tuple[Array, Array]]:
        field = inside(params)
        logits = logits_fn(family.apply(field, examples.images))
        gap = -margin(logits, examples.labels) if examples.targets is None else margin(logits, examples.targets)
        # The best wrong class level with the label is not yet success: aim a hair beyond.
        value = jnp.maximum(gap, -confidence - 1e-3)
        value += flow_weight * fields.total_variation(field, diagonal=diagonal)
        return jnp.sum(value), (value, logits)

    def step(logits_fn: LogitsFn, examples: Examples, search: Search) -> Search:
        params, memory = search.params, search.memory
        (_, (value, logits)), gradient = jax.value_and_grad(cost, has_aux=True)(params, logits_fn, examples)
        gradient = finite_or_zero(gradient)
        first = search.calls == 0
        # L-BFGS moves freely; the answer is the field that was used.
        tried = search._replace(params=inside(params))
        search = record(tried, -value, is_broken(logits, examples), keep=keep)
        accepted = first | (value <= memory.value + SUFFICIENT * memory.length * memory.slope)
        after, converged = _turn(lbfgs, memory, params, value, gradient)
        again = memory._replace(length=memory.length / 2)
        memory = choose(accepted, after, again)
        over = (accepted & converged) | (memory.length < SMALLEST) | (search.calls >= num_evaluations)
        moved = memory.point + spread(memory.length, params).astype(params.dtype) * memory.direction
        return search._replace(params=moved, memory=memory, done=search.done | over)

    return Attack(
        name or "stadv",
        family,
        Budget(None, "none", "pixels") if ball is None else budget_of(ball, family),
        None if ball is None else used_share(ball),
        begin,
        step,
        calls_per_step=1,
        max_steps=num_evaluations,
        uses_gradients=True,
        settings={
            "num_evaluations": num_evaluations, "flow_weight": flow_weight, "confidence": confidence,
            "diagonal": diagonal, "keep": keep,
        },
    )  # fmt: skip


def _lbfgs(memory_size: int) -> Any:
    try:
        optax: Any = import_module("optax")  # here, so that the library itself does without
    except ImportError:
        raise ImportError("stadv needs Optax's L-BFGS: pip install deformreg[attacks]") from None
    return optax.scale_by_lbfgs(memory_size=memory_size)


def _turn(lbfgs: Any, memory: Memory, params: Array, value: Array, gradient: Array) -> tuple[Memory, Array]:
    """The memory after accepting `params`: a new direction, downhill in any case; and whether there is none left."""
    axes = tuple(range(1, params.ndim))
    preconditioned, history = jax.vmap(lbfgs.update)(gradient, memory.history, params)
    slope = -jnp.sum(gradient * preconditioned, axis=axes)
    downhill = slope < 0
    direction = -choose(downhill, preconditioned, gradient)
    steepest = -jnp.sum(gradient**2, axis=axes)
    slope = jnp.where(downhill, slope, steepest)
    return Memory(params, value, direction, slope, jnp.ones_like(value), history), steepest > -1e-12
