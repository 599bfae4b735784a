"""Runs an attack over many examples in batches of one shape, giving the rows of finished examples to waiting ones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from deformreg._arrays import choose
from deformreg.attacks.attack import (
    Attack,
    AttackResult,
    Examples,
    LogitsFn,
    Search,
    advance,
    as_argument,
    finish,
    row_keys,
)


class Compiled(NamedTuple):
    """An attack's compiled functions; logits function and radius are arguments: new ones compile nothing new.

    Attributes:
        begin: the attack's, as it is.
        place: ``(examples, search, take, images, labels, indices, key, targets) -> (examples, search)``: new examples
            into the rows of `take`.
        advance: ``(logits_fn, examples, search, quota) -> (search, steps)``.
        finish: ``(logits_fn, examples, search) -> (result, size)``.
    """

    begin: Callable[[Examples], Search]
    place: Callable[..., tuple[Examples, Search]]
    advance: Callable[..., tuple[Search, jax.Array]]
    finish: Callable[..., tuple[AttackResult, jax.Array]]


class Finished(NamedTuple):
    """Examples that are through, on the host.

    Attributes:
        indices: int[k], which examples.
        result: of these examples.
        size: float[k], the share of the budget used.
        steps: steps taken so far by the batch as a whole.
    """

    indices: np.ndarray[Any, Any]
    result: AttackResult
    size: np.ndarray[Any, Any]
    steps: int


def compile_attack(make: Callable[[Any], Attack]) -> Callable[[Any], Compiled]:
    """Jitted functions of an attack made from a radius, which is traced: they compile once per batch shape."""

    def begin(radius: Any, examples: Examples) -> Search:
        return make(radius).begin(examples)

    def place(
        radius: Any, examples: Any, search: Any, take: Any, images: Any, labels: Any, indices: Any, key: Any,
        targets: Any,
    ) -> Any:  # fmt: skip
        incoming = Examples(images, labels, row_keys(key, indices), targets)
        return choose(take, incoming, examples), choose(take, begin(radius, incoming), search)

    def run(radius: Any, logits_fn: Partial, examples: Examples, search: Search, quota: Any) -> Any:
        return advance(make(radius), logits_fn, examples, search, quota)

    def conclude(radius: Any, examples: Examples, search: Search) -> tuple[AttackResult, jax.Array]:
        attack = make(radius)
        size = jnp.zeros(examples.labels.shape) if attack.size is None else attack.size(search.kept, examples.images)
        return finish(attack, examples, search), size

    placed, ran, concluded = jax.jit(place), jax.jit(run), jax.jit(conclude)
    return lambda radius: Compiled(
        partial(begin, radius), partial(placed, radius), partial(ran, radius), partial(concluded, radius)
    )


def empty(
    compiled: Compiled, images: Any, labels: Any, *, key: jax.Array, batch_size: int, targets: Any
) -> tuple[Examples, Search]:
    """A batch without examples: every row is done."""
    at = np.zeros(batch_size, int)
    incoming = Examples(
        images[at], labels[at], row_keys(key, jnp.asarray(at)), None if targets is None else targets[at]
    )
    search = jax.eval_shape(compiled.begin, incoming)
    search = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), search)
    return incoming, search._replace(done=jnp.ones(batch_size, bool))


def run_refilled(
    compiled: Compiled,
    logits_fn: LogitsFn,
    images: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    indices: np.ndarray[Any, Any],
    *,
    key: jax.Array,
    batch_size: int,
    targets: np.ndarray[Any, Any] | None = None,
    refill: bool = True,
) -> Iterator[Finished]:
    """Attacks the examples `indices`, yielding them as they finish, in no particular order.

    A batch runs on the device until a sixteenth of its rows is done, so the host is asked rarely and few rows idle.
    With ``refill=False`` a batch runs until its last row is done and is then replaced as a whole.
    """
    function = as_argument(logits_fn)
    queue = deque(indices.tolist())
    rows = np.full(batch_size, -1)
    examples, search = empty(compiled, images, labels, key=key, batch_size=batch_size, targets=targets)
    steps = 0
    patience = max(1, batch_size // 16)
    while queue or (rows >= 0).any():
        take = np.zeros(batch_size, bool)
        for row in np.flatnonzero(rows < 0)[: len(queue)]:
            rows[row], take[row] = queue.popleft(), True
        if take.any():
            at = np.maximum(rows, 0)
            chosen = None if targets is None else targets[at]
            examples, search = compiled.place(examples, search, take, images[at], labels[at], at, key, chosen)
        idle = int((rows < 0).sum())
        quota = min(idle + patience, batch_size) if refill and queue else batch_size
        search, taken = compiled.advance(function, examples, search, quota)
        steps += int(taken)
        done = np.asarray(search.done) & (rows >= 0)
        result, size = jax.device_get(compiled.finish(examples, search))
        yield Finished(rows[done], jax.tree.map(lambda leaf, done=done: leaf[done], result), size[done], steps)
        rows[done] = -1


def warm_up(
    compiled: Compiled, logits_fn: LogitsFn, images: Any, labels: Any, *, key: jax.Array, batch_size: int, targets: Any
) -> float:
    """Compiles an attack for a batch shape without spending a model call; returns the seconds it took."""
    started = time.perf_counter()
    at = np.zeros(batch_size, int)
    chosen = None if targets is None else targets[at]
    take = np.ones(batch_size, bool)
    examples, search = empty(compiled, images, labels, key=key, batch_size=batch_size, targets=targets)
    examples, search = compiled.place(examples, search, take, images[at], labels[at], at, key, chosen)
    search, _ = compiled.advance(as_argument(logits_fn), examples, search, -1)
    jax.device_get(compiled.finish(examples, search))
    return time.perf_counter() - started
