"""An attack as a value: a search that tries one candidate per example and step.

Every attack of this package is three pure functions over *rows*: `begin` makes the state of a search without calling
the model, `step` spends a fixed number of model calls on every row, and the state says which rows are done. Rows never
interact and keep their own counters and keys. So one loop runs all attacks, and an evaluation can put a new example
into the row of a finished one at any moment without changing anybody's result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deformreg import _checks
from deformreg.attacks.ascent import choose
from deformreg.attacks.budget import Budget
from deformreg.attacks.result import AttackResult, measure
from deformreg.balls import Ball
from deformreg.losses import (
    cross_entropy,
    difference_of_logits_ratio,
    margin,
    targeted_difference_of_logits_ratio,
)
from deformreg.noise import Noise
from deformreg.perturbations import Perturbation

Params = Any
LogitsFn = Callable[[Array], Array]
"""``images -> logits[n, classes]``; every row depends on its own image alone."""

Loss = Literal["cross_entropy", "margin", "dlr"] | Callable[[Array, Array], Array]
"""A name, or a function ``(logits, labels) -> losses[n]``; ascended (with targets: descended at the target)."""

LOSSES = {"cross_entropy": cross_entropy, "margin": margin, "dlr": difference_of_logits_ratio}

Keep = Literal["last", "best", "any"]
"""Which candidate an attack answers with: the ``"last"``, the ``"best"`` of all (one that breaks the model beats one
that does not, then the higher loss), or ``"any"``: the first that breaks the model ends the search, else the best."""


class Examples(NamedTuple):
    """The examples in the rows of a batch.

    Attributes:
        images: float[n, h, w, c].
        labels: int[n].
        keys: random keys, one per example.
        targets: int[n], the classes to reach, or None for an untargeted attack.
    """

    images: Float[Array, "n h w c"]
    labels: Int[Array, " n"]
    keys: Array
    targets: Int[Array, " n"] | None = None


class Search(NamedTuple):
    """The state of a search; the first axis of every array is the row.

    Attributes:
        params: the candidate to try next.
        kept: the answer so far.
        losses: float[n], the objective at `kept`.
        broken: bool[n], whether `kept` breaks the model.
        calls: int32[n], model calls spent.
        done: bool[n], whether the row's search is over.
        memory: what else the attack carries, a pytree.
    """

    params: Params
    kept: Params
    losses: Float[Array, " n"]
    broken: Bool[Array, " n"]
    calls: Int[Array, " n"]
    done: Bool[Array, " n"]
    memory: Any = ()


class Attack(NamedTuple):
    """An attack; call `run`, or give it to `deformreg.evaluate`.

    Attributes:
        name: how reports call it.
        perturbation: the family it searches.
        budget: its bound.
        size: ``(params, images) -> float[n]``: how much of the budget is used, at most 1; None for no bound.
        begin: ``Examples -> Search``; calls no model.
        step: ``(logits_fn, examples, search) -> search``.
        calls_per_step: model calls of one step on one row.
        max_steps: steps after which every row is done.
        uses_gradients: whether the model is differentiated.
        settings: the factory's arguments, plain data for reports.
    """

    name: str
    perturbation: Perturbation
    budget: Budget
    size: Callable[[Params, Array], Array] | None
    begin: Callable[[Examples], Search]
    step: Callable[[LogitsFn, Examples, Search], Search]
    calls_per_step: int
    max_steps: int
    uses_gradients: bool
    settings: Mapping[str, Any] = {}

    def run(
        self,
        logits_fn: LogitsFn,
        images: Float[Array, "n h w c"],
        labels: Int[Array, " n"],
        key: Array,
        targets: Int[Array, " n"] | None = None,
    ) -> AttackResult:
        """Attacks a batch. Works inside `jit`; compile it there if it is called more than once.

        Args:
            logits_fn: ``images -> logits[n, classes]``, row by row independent (inference mode).
            images: in the range the model expects.
            labels: the right classes.
            key: a JAX random key, of which example i draws from ``fold_in(key, i)``; or ``jax.random.key``'s type with
                shape [n], one key per example.
            targets: classes to reach; None attacks untargeted, away from the labels.

        Returns:
            The result.

        Raises:
            TypeError: integer images, floating labels.
            ValueError: shapes that do not fit.
        """
        images = _checks.images(images)
        examples = Examples(
            jax.lax.stop_gradient(images),
            class_indices("labels", labels, images.shape[0]),
            key if _are_keys(key) else row_keys(key, jnp.arange(images.shape[0])),
            None if targets is None else class_indices("targets", targets, images.shape[0]),
        )
        search, _ = advance(self, logits_fn, examples, self.begin(examples), images.shape[0])
        return finish(self, examples, search)


def _are_keys(key: Array) -> bool:
    return key.ndim == 1 and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def row_keys(key: Array, indices: Array) -> Array:
    """One key per example, from its index alone: an example's draws do not depend on its batch."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def class_indices(name: str, value: Any, count: int) -> Array:
    """Returns `value` as int[count], or raises."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    if array.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one class per image, got {array.shape}")
    return array


def advance(
    attack: Attack, logits_fn: LogitsFn, examples: Examples, search: Search, quota: int | Array
) -> tuple[Search, Array]:
    """Steps until at least `quota` rows are done; returns the state and the number of steps taken."""

    def going(carry: tuple[Search, Array]) -> Array:
        return jnp.sum(carry[0].done) < quota

    def step(carry: tuple[Search, Array]) -> tuple[Search, Array]:
        search, steps = carry
        stepped = attack.step(logits_fn, examples, search)
        return choose(search.done, search, stepped), steps + 1

    return jax.lax.while_loop(going, step, (search, jnp.zeros((), jnp.int32)))


def finish(attack: Attack, examples: Examples, search: Search) -> AttackResult:
    """The result of a search."""
    search = jax.lax.stop_gradient(search)
    images = examples.images
    found = attack.perturbation.apply(search.kept, images)
    return AttackResult(
        choose(search.broken, found, images),
        search.kept,
        search.broken,
        search.losses,
        measure(attack.perturbation, search.kept, images),
        search.calls,
    )


def fresh(examples: Examples, params: Params, memory: Any = ()) -> Search:
    """A search that has tried nothing and is about to try `params`."""
    count = examples.images.shape[0]
    dtype = jnp.promote_types(examples.images.dtype, jnp.float32)
    no = jnp.zeros(count, bool)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Search(params, zeros, jnp.full(count, -jnp.inf, dtype), no, jnp.zeros(count, jnp.int32), no, memory)


def sample_start(
    family: Perturbation, ball: Ball, law: Noise, examples: Examples, identity: Params, run: Array
) -> Params:
    """Random parameters in the ball: every example's own, and others in every run (int[n])."""
    keys = jax.vmap(jax.random.fold_in)(examples.keys, run)
    return family.constrain(ball.project(sample_rows(law, keys, identity)), examples.images)


def is_broken(logits: Array, examples: Examples) -> Array:
    """Whether predictions left the label or reached the target; logits that are not finite predict nothing."""
    predicted = jnp.where(jnp.isfinite(logits).all(axis=1), jnp.argmax(logits, axis=1), -1)
    return predicted != examples.labels if examples.targets is None else predicted == examples.targets


def runners_up(logits: Array, labels: Array, count: int) -> Array:
    """int32[n, count]: the wrong classes with the largest logits, largest first."""
    right = jnp.arange(logits.shape[1])[None, :] == labels[:, None]
    order = jnp.argsort(jnp.where(right, -jnp.inf, logits), axis=1, descending=True)
    return order[:, :count].astype(jnp.int32)


def check_loss(loss: Loss) -> None:
    """Raises unless a loss is a function or one of the names."""
    if not callable(loss):
        _checks.choice("loss", loss, LOSSES)


def objective(loss: Loss, logits: Array, examples: Examples) -> Array:
    """The value an attack ascends, one per example."""
    if examples.targets is not None:
        if loss == "dlr":
            return targeted_difference_of_logits_ratio(logits, examples.labels, examples.targets)
        return -objective(loss, logits, examples._replace(labels=examples.targets, targets=None))
    if callable(loss):
        return _checks.per_example(loss(logits, examples.labels), examples.images.shape[0], "loss")
    return LOSSES[loss](logits, examples.labels)


def try_out(
    logits_fn: LogitsFn, perturbation: Perturbation, loss: Loss, examples: Examples, params: Params
) -> tuple[Array, Array]:
    """One forward pass at `params`: the objective and whether the model breaks."""
    logits = logits_fn(perturbation.apply(params, examples.images))
    return objective(loss, logits, examples), is_broken(logits, examples)


def differentiate(
    logits_fn: LogitsFn, perturbation: Perturbation, loss: Loss, examples: Examples, params: Params
) -> tuple[Array, Array, Params]:
    """One forward and backward pass at `params`: the objective, its gradient (finite), and the logits."""

    def total(params: Params) -> tuple[Array, tuple[Array, Array]]:
        logits = logits_fn(perturbation.apply(params, examples.images))
        losses = objective(loss, logits, examples)
        return jnp.sum(losses), (losses, logits)

    (_, (losses, logits)), gradient = jax.value_and_grad(total, has_aux=True)(params)
    return losses, finite_or_zero(gradient), logits


def finite_or_zero(gradient: Params) -> Params:
    """The gradient, zero where it is not finite: one step along such a component would end the search."""
    return jax.tree.map(lambda leaf: jnp.nan_to_num(leaf, posinf=0.0, neginf=0.0), gradient)


def record(
    search: Search, losses: Array, broken: Array, *, keep: Keep, eligible: Array | bool = True, calls: int = 1
) -> Search:
    """Notes what came of trying ``search.params``: keeps the better answer, counts the calls, ends won searches.

    Parameters that are not finite are no answer, whatever the model makes of them.

    Args:
        search: the state; `params` is what was tried.
        losses: the objective there.
        broken: whether the model broke there.
        keep: ``"best"`` goes on after a success, the others stop.
        eligible: bool[n], which candidates may become the answer.
        calls: model calls spent.

    Returns:
        The state.
    """
    losses = losses.astype(search.losses.dtype)
    for leaf in jax.tree.leaves(search.params):
        eligible &= jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))
    never = jnp.isneginf(search.losses) & ~search.broken
    better = (broken & ~search.broken) | ((broken == search.broken) & ((losses > search.losses) | never))
    better &= eligible
    return search._replace(
        kept=choose(better, search.params, search.kept),
        losses=jnp.where(better, losses, search.losses),
        broken=search.broken | (broken & eligible),
        calls=search.calls + calls,
        done=search.done if keep == "best" else search.done | (broken & eligible),
    )


def sample_rows(draw: Callable[[Array, Params], Params], keys: Array, params: Params) -> Params:
    """Draws each row from its own key, as a batch of one."""

    def one(key: Array, row: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf[0], draw(key, jax.tree.map(lambda leaf: leaf[None], row)))

    return jax.vmap(one)(keys, params)
