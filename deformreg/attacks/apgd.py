"""APGD, AutoAttack's parameter-free gradient attack, in any perturbation family.

References:
    Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
    ICML 2020, algorithm 1 and section 3.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from deformreg import _checks
from deformreg._arrays import choose, entries, entries_of, pad_examples, spread
from deformreg._families import family_or_flow, identity
from deformreg.attacks.attack import Attack, Examples, LogitsFn, Search
from deformreg.attacks.search import (
    Keep,
    Loss,
    Tried,
    budget_of,
    check_ball,
    check_choices,
    differentiate,
    fresh,
    record,
    runners_up,
    sample_start,
    started_anew,
    used_share,
)
from deformreg.balls import Ball
from deformreg.perturbations import Params, Perturbation

MOMENTUM = 0.75  # weight of the new step against the last one
RISES = 0.75  # the share of steps since the last checkpoint that must have raised the loss


class Schedule(NamedTuple):
    """The checkpoints: for each iterate, whether it is one, and the number of steps since the one before.

    The initial step size is in radii.
    """

    checkpoint: Array
    window: Array
    initial_step: float


class Memory(NamedTuple):
    """The state of a row besides its candidate; the step size is in radii."""

    previous: Any
    best: Any
    best_gradient: Any
    best_loss: Array
    last_loss: Array
    checkpoint_loss: Array
    rises: Array
    step_size: Array
    reduced: Array
    ranking: Array


def schedule(num_steps: int, initial_step: float = 2.0) -> Schedule:
    """The checkpoints: first after 22 % of the steps, then windows shrinking by 3 % down to 6 %."""
    window, shrink = max(int(0.22 * num_steps), 1), max(int(0.03 * num_steps), 1)
    smallest = max(int(0.06 * num_steps), 1)
    checkpoint, windows = np.zeros(num_steps + 1, bool), np.ones(num_steps + 1)
    at = window
    while at <= num_steps:
        checkpoint[at], windows[at] = True, window
        window = max(window - shrink, smallest)
        at += window
    return Schedule(jnp.asarray(checkpoint), jnp.asarray(windows), initial_step)


def apgd(
    *,
    ball: Ball,
    num_steps: int = 100,
    perturbation: Perturbation | None = None,
    restarts: int = 1,
    start: Literal["zero", "random"] = "random",
    loss: Loss = "cross_entropy",
    num_targets: int = 0,
    initial_step: float = 0.5,
    keep: Keep = "any",
    name: str | None = None,
) -> Attack:
    """Projected ascent with momentum whose step halves, and jumps back to the best point, when progress stalls.

    Args:
        ball: see `deformreg.attacks.pgd`.
        num_steps: per restart, at least 1.
        perturbation: the family; None is ``flow()``.
        restarts: at least 1, per target.
        start: ``"random"`` in the ball, or the first of them ``"zero"``.
        loss: ``"cross_entropy"``, ``"margin"``, ``"dlr"`` (the margin with fewer than four classes) or a function.
        num_targets: 0 ascends the loss at the label (or descends it at the targets of the run). k > 0 ascends the
            targeted loss towards each of the k runner-up classes of the clean image in turn (or k times towards the
            target of the run), or of all other classes where there are fewer; 9 for ten classes. A class whose logit is
            -inf there is no runner-up.
        initial_step: the first step size, in radii. The paper uses 2 for pixel values. The loss along a flow curves
            within a fraction of a pixel, where the shorter default breaks more examples.
        keep: ``"any"`` stops at the first iterate that breaks the model, ``"best"`` goes on to the end, ``"last"``
            returns the last iterate.
        name: for reports; None makes one.

    Returns:
        The attack. It spends at most ``max(num_targets, 1) * restarts * (num_steps + 1)`` model calls on an example,
        and with `num_targets` one more to rank the classes.

    Raises:
        TypeError: a count that is not an integer.
        ValueError: a number out of range, or an unknown `start`, `loss` or `keep`. On `run`: `num_targets` with a
            function as loss, or with a model of one class.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import linf
        >>> edge = lambda x: jnp.stack([x[:, 0, 1, 0], 0.75 - x[:, 0, 1, 0]], axis=1)  # class 0 where bright
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1) / 2
        >>> attack = apgd(ball=linf(0.5), num_steps=10)
        >>> attack.run(edge, ramp, jnp.array([0]), jax.random.key(0)).success.tolist()
        [True]

    References:
        Croce and Hein, ICML 2020, see the module.
    """
    ball = check_ball(ball, per_example=False)
    family = family_or_flow(perturbation)
    num_steps, restarts = _checks.count("num_steps", num_steps), _checks.count("restarts", restarts)
    num_targets = _checks.count("num_targets", num_targets, minimum=0)
    _checks.choice("start", start, get_args(Literal["zero", "random"]))
    check_choices(loss, keep)
    _checks.positive("initial_step", initial_step)
    plan = _Plan(family, ball, num_steps, restarts, start, loss, num_targets, keep, schedule(num_steps, initial_step))
    most_runs = max(num_targets, 1) * restarts
    label = loss if isinstance(loss, str) else "function"
    return Attack(
        name or f"apgd-{label}" + (f"-t{num_targets}" if num_targets else ""),
        family,
        budget_of(ball, family),
        used_share(ball),
        partial(_begin, plan),
        partial(_step, plan),
        max_steps=most_runs * (num_steps + 1) + plan.ranked,
        uses_gradients=True,
        settings={
            "num_steps": num_steps, "start": start, "restarts": restarts, "loss": label, "num_targets": num_targets,
            "initial_step": initial_step, "keep": keep,
        },
        one_class=loss == "dlr" or num_targets > 0,
    )  # fmt: skip


class _Plan(NamedTuple):
    """The arguments of `apgd` that its search keeps to. A *run* is one restart towards one target."""

    family: Perturbation
    ball: Ball
    num_steps: int
    restarts: int
    start: Literal["zero", "random"]
    loss: Loss
    num_targets: int
    keep: Keep
    schedule: Schedule

    @property
    def ranked(self) -> int:
        """Model calls that rank the classes before the first run: 1 or 0."""
        return int(self.num_targets > 0)


def _draw(plan: _Plan, examples: Examples, zeros: Params, run: Array) -> Params:
    """Where run number `run` starts, int[n]."""
    params = sample_start(plan.family, plan.ball, plan.ball.sample, examples, zeros, run)
    return choose(run % plan.restarts == 0, zeros, params) if plan.start == "zero" else params


def _begin(plan: _Plan, examples: Examples) -> Search:
    zeros = identity(plan.family, examples.images)
    first = zeros if plan.ranked else _draw(plan, examples, zeros, jnp.zeros(len(examples.images), jnp.int32))
    search = fresh(examples, first)
    return search._replace(memory=blank(zeros, search.losses, plan.num_targets))


def _step(plan: _Plan, logits_fn: LogitsFn, examples: Examples, search: Search) -> Search:
    params, memory, ranked = search.params, search.memory, plan.ranked
    # The call that ranks the classes comes first: it counts as the last call of run -1.
    run, iterate = jnp.divmod(search.calls - ranked, plan.num_steps + 1)
    targets = aim(memory.ranking, run // plan.restarts) if ranked else None
    tried = differentiate(logits_fn, plan.family, plan.loss, examples, params, targets=targets)
    over = iterate == plan.num_steps
    eligible = (run >= 0) & (over | (plan.keep != "last"))
    search = record(search, tried.losses, tried.broken, keep=plan.keep, eligible=eligible)
    most = max(min(plan.num_targets, tried.logits.shape[1] - 1), 1)
    runs = (_number_of_classes(memory.ranking) if examples.targets is None else most) * plan.restarts
    moved, memory = _next(plan, examples, memory, params, tried, iterate)
    if ranked:
        ranking = rank(tried.logits, examples, plan.loss, plan.num_targets)
        memory = memory._replace(ranking=jnp.where((run < 0)[:, None], ranking, memory.ranking))
    if plan.restarts > 1 or ranked:
        zeros = jax.tree.map(jnp.zeros_like, params)
        moved = started_anew(over, lambda: _draw(plan, examples, zeros, run + 1), moved)
    return search._replace(params=moved, memory=memory, done=search.done | (over & (run == runs - 1)))


def _next(
    plan: _Plan, examples: Examples, memory: Memory, params: Params, tried: Tried, iterate: Array
) -> tuple[Params, Memory]:
    """The next iterate of a run."""

    def constrain(params: Params) -> Params:
        return plan.family.constrain(params, examples.images)

    losses = tried.losses.astype(memory.last_loss.dtype)
    memory = look_back(memory, params, losses, tried.gradient, iterate, plan.schedule)
    return move(memory, params, tried.gradient, iterate, plan.schedule, plan.ball, constrain)


def blank(zeros: Any, losses: Array, num_targets: int) -> Memory:
    """The memory of a search that has tried nothing; the first iterate overwrites all of it."""
    nothing, ranking = jnp.zeros_like(losses), jnp.zeros((losses.shape[0], max(num_targets, 1)), jnp.int32)
    reduced = jnp.ones(losses.shape, bool)
    return Memory(zeros, zeros, zeros, losses, losses, losses, nothing, nothing, reduced, ranking)


def rank(logits: Array, examples: Examples, loss: Loss, num_targets: int) -> Array:
    """int32[n, num_targets]: the runner-up classes of the clean logits, or the target of the run repeated.

    Where there are fewer other classes the last one is repeated, and no run aims at the repetitions.
    """
    if examples.targets is not None:
        return jnp.broadcast_to(examples.targets[:, None], (len(logits), num_targets)).astype(jnp.int32)
    classes = logits.shape[1]
    if callable(loss) or classes < 2:
        raise ValueError(f"num_targets needs a named loss and two classes or more, got loss={loss}, {classes} classes")
    found = runners_up(logits, examples.labels, min(num_targets, classes - 1))
    return pad_examples(found, [(0, num_targets - found.shape[1])], "edge")


def _number_of_classes(ranking: Array) -> Array:
    """int32[n]: how many different classes each example's ranking has; repetitions follow each other."""
    return 1 + jnp.sum(ranking[:, 1:] != ranking[:, :-1], axis=1)


def aim(ranking: Array, number: Array) -> Array:
    """int32[n]: for each example, one of its ranked classes as target."""
    at = jnp.clip(number, 0, ranking.shape[1] - 1)
    return entries(ranking, at)


def look_back(memory: Memory, params: Any, losses: Array, gradient: Any, iterate: Array, plan: Schedule) -> Memory:
    """Updates the best point, and at a checkpoint decides whether to halve the step size."""
    first = iterate == 0
    better = first | (losses > memory.best_loss) | jnp.isnan(memory.best_loss)
    best_loss = jnp.where(better, losses, memory.best_loss)
    rises = jnp.where(first, 0, memory.rises + (losses > memory.last_loss).astype(memory.rises.dtype))
    at = entries_of(plan.checkpoint, iterate)
    stalled = rises <= RISES * entries_of(plan.window, iterate)
    stuck = ~memory.reduced & (memory.checkpoint_loss >= best_loss)
    reduce = at & (stalled | stuck)
    return memory._replace(
        best=choose(better, params, memory.best),
        best_gradient=choose(better, gradient, memory.best_gradient),
        best_loss=best_loss,
        last_loss=losses,
        checkpoint_loss=jnp.where(first | at, best_loss, memory.checkpoint_loss),
        rises=jnp.where(at, 0, rises),
        step_size=jnp.where(first, plan.initial_step, jnp.where(reduce, memory.step_size / 2, memory.step_size)),
        reduced=jnp.where(first, True, jnp.where(at, reduce, memory.reduced)),
    )


def move(
    memory: Memory, params: Any, gradient: Any, iterate: Array, plan: Schedule, ball: Ball, constrain: Any
) -> tuple[Any, Memory]:
    """The next iterate: a projected step plus momentum, from the best point if the step size was just halved."""
    jump = entries_of(plan.checkpoint, iterate) & memory.reduced
    at, gradient = choose(jump, memory.best, params), choose(jump, memory.best_gradient, gradient)
    previous = choose(iterate == 0, params, memory.previous)
    share = jnp.where(iterate == 0, 1.0, MOMENTUM)
    lengths = jax.tree.map(lambda leaf: spread(memory.step_size, leaf) * jnp.asarray(ball.radius, leaf.dtype), at)
    stepped = jax.tree.map(
        lambda leaf, length, direction: leaf + (length * direction).astype(leaf.dtype),
        at,
        lengths,
        ball.steepest(gradient),
    )
    stepped = constrain(ball.project(stepped))

    def blend(leaf: Array, new: Array, old: Array) -> Array:
        a = spread(share, leaf).astype(leaf.dtype)
        return leaf + a * (new - leaf) + (1 - a) * (leaf - old)

    blended = jax.tree.map(blend, at, stepped, previous)
    return constrain(ball.project(blended)), memory._replace(previous=at)
