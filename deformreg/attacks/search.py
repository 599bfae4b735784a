"""The kit for writing an attack: start a search, try candidates, record the results, describe the budget.

An attack's `begin` returns a `fresh` search. Its `step` evaluates ``search.params`` with `try_out` (forward pass) or
`differentiate` (forward and backward pass), passes the result to `record`, and sets the next candidate and `done`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from deformreg import _checks, fields
from deformreg._arrays import aligned, choose, entries, finite_or_zero, scaled
from deformreg.attacks.attack import Budget, Examples, LogitsFn, Search, labels_along
from deformreg.balls import Ball, l2
from deformreg.criteria.classification import predicted_classes
from deformreg.losses import difference_of_logits_ratio, targeted_difference_of_logits_ratio
from deformreg.noise import Noise
from deformreg.perturbations import Params, Perturbation

Loss = Literal["cross_entropy", "margin", "dlr"] | Callable[[Array, Array], Array]
"""A name, or a function ``(logits, labels) -> losses[n]``; ascended (with targets: descended at the target).

``"cross_entropy"`` is the criterion's loss, which is that for classes, and ``"margin"`` its margin; ``"dlr"`` needs one
class per image."""

Start = Literal["zero", "random"] | Noise
"""Where an attack begins: at the clean image, uniformly in the ball, or at a draw of a law from `deformreg.noise`."""

Keep = Literal["last", "best", "any"]
"""Which candidate an attack returns: the ``"last"``; the ``"best"`` of all (one that breaks the model beats one that
does not, then the higher loss); or ``"any"``: the first that breaks the model ends the search, else the best."""


def check_ball(ball: Ball, *, per_example: bool = True, arrays: bool = True) -> Ball:
    """Returns the ball; raises for another value, and for radii of a kind that an attack does not take."""
    ball = _checks.instance("ball", ball, Ball, "deformreg.linf(0.5)")
    shape = jnp.shape(ball.radius)
    if shape and not (arrays and (per_example or not ball.per_example)):
        wanted = "one radius for all examples" if arrays else "one number as radius"
        raise ValueError(f"ball must have {wanted} here, got radii of shape {shape}")
    return ball


def check_choices(loss: Loss, keep: Keep, keeps: tuple[str, ...] = get_args(Keep)) -> None:
    """Raises unless `loss` is a function or one of the names, and `keep` one of `keeps`."""
    if not callable(loss):
        _checks.choice("loss", loss, ("cross_entropy", "margin", "dlr"))
    _checks.choice("keep", keep, keeps)


def objective(loss: Loss, logits: Array, examples: Examples) -> Array:
    """The value an attack ascends, one per example.

    With fewer than four classes the margin replaces the ratio ``"dlr"``, whose targeted form needs four. So it does in
    rows where fewer than four logits are finite.
    """
    if loss == "dlr" and logits.shape[1] < 4:
        loss = "margin"
    if loss == "dlr":
        few = jnp.sum(logits > -jnp.inf, axis=1) < 4
        # The ratio would be over infinity in these rows. It sees other logits there, or its gradient would be NaN.
        ratio = _ratio(jnp.where(few[:, None], jnp.arange(logits.shape[1], dtype=logits.dtype)[None], logits), examples)
        return jnp.where(few, objective("margin", logits, examples), ratio)
    if examples.targets is not None:
        return -objective(loss, logits, examples._replace(labels=examples.targets, targets=None))
    if callable(loss):
        return _checks.per_example(loss(logits, examples.labels), examples.images.shape[0], "loss")
    criterion = examples.criterion
    return (criterion.loss if loss == "cross_entropy" else criterion.margin)(logits, examples.labels)


def _ratio(logits: Array, examples: Examples) -> Array:
    if examples.targets is None:
        return difference_of_logits_ratio(logits, examples.labels)
    return targeted_difference_of_logits_ratio(logits, examples.labels, examples.targets)


def is_broken(logits: Array, examples: Examples) -> Array:
    """Whether outputs are broken, or predictions reached the target; NaN and +inf among logits predict nothing."""
    if examples.targets is None:
        return examples.criterion.broken(logits, examples.labels)
    return predicted_classes(logits) == examples.targets


def runners_up(logits: Array, labels: Array, count: int) -> Array:
    """int32[n, count]: the wrong classes with the largest logits, largest first.

    A class with a logit of -inf is none of them: the last of the others is repeated in its place.
    """
    right = jnp.arange(logits.shape[1])[None, :] == labels[:, None]
    others = jnp.where(right, -jnp.inf, logits)
    order = jnp.argsort(others, axis=1, descending=True)
    last = jnp.maximum(jnp.sum(others > -jnp.inf, axis=1) - 1, 0)
    return entries(order, jnp.minimum(jnp.arange(count)[None, :], last[:, None])).astype(jnp.int32)


def fresh(examples: Examples, params: Params, memory: Any = ()) -> Search:
    """A search that has tried nothing and is about to try `params`."""
    count = examples.images.shape[0]
    dtype = jnp.promote_types(examples.images.dtype, jnp.float32)
    no = jnp.zeros(count, bool)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Search(params, zeros, jnp.full(count, -jnp.inf, dtype), no, jnp.zeros(count, jnp.int32), no, memory)


def step_keys(examples: Examples, number: Array) -> Array:
    """Every row's key for its step or restart `number`, int[n]."""
    return jax.vmap(jax.random.fold_in)(examples.keys, aligned(number, examples.keys))


def random_signs(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """1 or -1, equally likely; unlike those of `jax.random.rademacher` the same with `jax_enable_x64`."""
    return jnp.where(jax.random.bernoulli(key, jnp.float32(0.5), shape), 1, -1).astype(dtype)


def sample_rows(draw: Callable[[Array, Params], Params], keys: Array, params: Params) -> Params:
    """Draws each row from its own key, as a batch of one."""

    def one(key: Array, row: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf[0], draw(key, jax.tree.map(lambda leaf: leaf[None], row)))

    return jax.vmap(one)(aligned(keys, jax.tree.leaves(params)[0]), params)


def sample_start(
    family: Perturbation, ball: Ball, law: Noise, examples: Examples, identity: Params, restart: Array
) -> Params:
    """Random parameters in the ball, different for every example and every restart (int[n])."""
    keys = step_keys(examples, restart)
    if law is ball.sample and ball.per_example and jnp.ndim(ball.radius):
        # A row draws alone and would meet the radii of all: it draws from the unit ball, which its own radius scales.
        drawn = scaled(sample_rows(l2(1.0).sample, keys, identity), jnp.asarray(ball.radius))
    else:
        drawn = sample_rows(law, keys, identity)
    return family.constrain(ball.project(drawn), examples.images)


def started_anew(over: Array, draw: Callable[[], Params], moved: Params) -> Params:
    """The next candidates: `moved`, or in the rows where a restart is `over` those of `draw`, drawn only if needed."""
    return jax.lax.cond(over.any(), lambda: choose(over, draw(), moved), lambda: moved)


def try_out(
    logits_fn: LogitsFn, perturbation: Perturbation, loss: Loss, examples: Examples, params: Params
) -> tuple[Array, Array]:
    """One forward pass at `params`: the objective and whether the model breaks."""
    logits = logits_fn(perturbation.apply(params, examples.images))
    examples = examples._replace(labels=labels_along(perturbation, examples, params))
    return objective(loss, logits, examples), is_broken(logits, examples)


class Tried(NamedTuple):
    """What one forward and backward pass says of a candidate.

    Attributes:
        losses: float[n], the objective.
        gradient: its gradient with respect to the parameters, finite.
        logits: the model's outputs.
        broken: bool[n], whether the candidate breaks the model.
    """

    losses: Array
    gradient: Params
    logits: Array
    broken: Array


def differentiate(
    logits_fn: LogitsFn,
    perturbation: Perturbation,
    loss: Loss,
    examples: Examples,
    params: Params,
    *,
    targets: Array | None = None,
) -> Tried:
    """One forward and backward pass at `params`.

    With `targets` (int[n]) the loss aims at these classes, and `broken` is still what the examples say.
    """

    def total(params: Params) -> tuple[Array, tuple[Array, Array, Array]]:
        here = examples._replace(labels=labels_along(perturbation, examples, params))
        return _judged(logits_fn, loss, here, perturbation.apply(params, examples.images), targets)

    (_, (losses, logits, broken)), gradient = jax.value_and_grad(total, has_aux=True)(params)
    return Tried(losses, finite_or_zero(gradient), logits, broken)


def differentiate_pixels(
    logits_fn: LogitsFn, perturbation: Perturbation, loss: Loss, examples: Examples, params: Params, images: Array
) -> Tried:
    """As `differentiate`, with the gradient with respect to `images`, which the parameters make."""
    here = examples._replace(labels=labels_along(perturbation, examples, params))

    def total(images: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        return _judged(logits_fn, loss, here, images, None)

    (_, (losses, logits, broken)), gradient = jax.value_and_grad(total, has_aux=True)(images)
    return Tried(losses, finite_or_zero(gradient), logits, broken)


def _judged(
    logits_fn: LogitsFn, loss: Loss, examples: Examples, images: Array, targets: Array | None
) -> tuple[Array, tuple[Array, Array, Array]]:
    """The sum of the objectives at images, then the objectives, the outputs and what is broken."""
    logits = logits_fn(images)
    aimed = examples if targets is None else examples._replace(targets=targets)
    losses = objective(loss, logits, aimed)
    return jnp.sum(losses), (losses, logits, is_broken(logits, examples))


def record(
    search: Search, losses: Array, broken: Array, *, keep: Keep, eligible: Array | bool = True, calls: int = 1
) -> Search:
    """Records the evaluation of ``search.params``: keeps the better candidate, counts calls, ends successful searches.

    A candidate with parameters that are not finite is never kept, whatever the model predicts there. One whose
    objective is NaN gives way to any other, if it breaks the model to any other that does.

    Args:
        search: the state; its `params` were evaluated.
        losses: the objective there.
        broken: whether the model broke there.
        keep: ``"best"`` goes on after a success, the others stop.
        eligible: bool[n], which candidates may be kept.
        calls: model calls spent.

    Returns:
        The state.
    """
    losses = losses.astype(search.losses.dtype)
    for leaf in jax.tree.leaves(search.params):
        eligible &= jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))
    gives_way = (jnp.isneginf(search.losses) & ~search.broken) | jnp.isnan(search.losses)  # -inf: nothing is kept yet
    better = (broken & ~search.broken) | ((broken == search.broken) & ((losses > search.losses) | gives_way))
    better &= eligible
    return search._replace(
        kept=choose(better, search.params, search.kept),
        losses=jnp.where(better, losses, search.losses),
        broken=search.broken | (broken & eligible),
        calls=search.calls + calls,
        done=search.done if keep == "best" else search.done | (broken & eligible),
    )


def plain(value: Any) -> Any:
    """An array or number as plain data; None while it is traced, as for a radius that is an argument of `jit`."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value).tolist()


def budget_of(ball: Ball, perturbation: Perturbation) -> Budget:
    """A ball as plain data."""
    radius = plain(ball.radius)
    return Budget(tuple(radius) if isinstance(radius, list) else radius, ball.name, perturbation.unit)


def used_share(ball: Ball) -> Callable[[Params, Array], Array]:
    """The share of a ball's radius that parameters use: 1 on the boundary."""

    def size(params: Params, images: Array) -> Array:
        del images
        norms = ball.norm(params)
        if jnp.ndim(ball.radius) > 0:  # the norm of such a ball is a share already
            return norms
        return jnp.where(norms > 0, norms / jnp.asarray(ball.radius, norms.dtype), 0)

    return size


def displacement_share(family: Perturbation, radius: float) -> Callable[[Params, Array], Array]:
    """``(params, images) -> float[n]``: the final field's largest component over `radius` pixels."""

    def size(params: Params, images: Array) -> Array:
        assert family.field is not None
        largest = fields.max_component(family.field(params, images))
        return jnp.where(largest > 0, largest / radius, 0)

    return size


def limit_displacement(family: Perturbation, radius: float, *, rounds: int = 6) -> Perturbation:
    """The family with parameters shrunk towards zero until the final field's largest component is `radius` pixels.

    A linear family needs one round. A rotation's field does not shrink in proportion to its angle, so several rounds
    approach the radius from either side; the last one only shrinks.
    """

    def constrain(params: Params, images: Array) -> Params:
        assert family.field is not None
        over = fields.max_component(family.field(params, images)) > radius
        for remaining in reversed(range(rounds)):
            largest = fields.max_component(family.field(params, images))
            change = (over if remaining else largest > radius) & (largest > 0)
            params = scaled(params, jnp.where(change, radius / jnp.where(change, largest, 1), 1))
        return family.constrain(params, images)

    return family._replace(constrain=constrain, unbounded=family)
