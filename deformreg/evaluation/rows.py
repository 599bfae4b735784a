"""Runs an attack over many examples in batches of one shape; waiting examples take the rows of finished ones."""

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

from deformreg._arrays import choose, spread
from deformreg.attacks.attack import Attack, AttackResult, Examples, Search, advance, finish, row_keys
from deformreg.criteria import Criterion, classification

HostArray = np.ndarray[Any, Any]


class Data(NamedTuple):
    """A data set on the host: images, what is right for them, the classes to reach or None, and the criterion."""

    images: HostArray
    labels: HostArray
    targets: HostArray | None
    criterion: Criterion = classification()

    def at(self, indices: HostArray | slice) -> Data:
        """Picks examples."""
        targets = None if self.targets is None else self.targets[indices]
        return self._replace(images=self.images[indices], labels=self.labels[indices], targets=targets)


class Batch(NamedTuple):
    """What is in the rows on the device."""

    examples: Examples
    search: Search


class Compiled(NamedTuple):
    """The compiled functions of an attack at a radius. A new model or radius of the same types compiles nothing new.

    Attributes:
        place: ``(batch, take, data, indices, key) -> batch``: starts new examples in the rows where `take` is true.
        advance: ``(logits_fn, batch, quota) -> (batch, steps)``: steps until `quota` rows are done.
        finish: ``(batch) -> (result, size)``: the rows' results, and the share of the budget that each uses.
        empty: ``(data, key, batch_size) -> batch``: a batch whose rows are all done.
        trace: ``(logits_fn, data, key, batch_size)``: traces the others, which raises what they would raise.
    """

    place: Callable[[Batch, HostArray, Data, HostArray, jax.Array], Batch]
    advance: Callable[[Partial, Batch, int], tuple[Batch, jax.Array]]
    finish: Callable[[Batch], tuple[AttackResult, jax.Array]]
    empty: Callable[[Data, jax.Array, int], Batch]
    trace: Callable[[Partial, Data, jax.Array, int], None]


class Finished(NamedTuple):
    """Examples that are finished, on the host.

    Attributes:
        indices: int[k], which examples.
        result: of these examples.
        size: float[k], the share of the budget used.
        steps: taken so far by the batch as a whole.
    """

    indices: HostArray
    result: AttackResult
    size: HostArray
    steps: int


def compile_attack(make: Callable[[Any], Attack]) -> Callable[[Any], Compiled]:
    """Jits an attack for all radii: the radius is traced, so each function compiles once per batch shape."""

    @jax.jit
    def place(radius: Any, batch: Batch, take: Any, data: Data, indices: Any, key: Any) -> Batch:
        examples = _examples(data, indices, key)
        placed: Batch = choose(take, Batch(examples, make(radius).begin(examples)), batch)
        return placed

    @jax.jit
    def run(radius: Any, logits_fn: Partial, batch: Batch, quota: Any) -> tuple[Batch, jax.Array]:
        search, steps = advance(make(radius), logits_fn, batch.examples, batch.search, quota)
        return batch._replace(search=search), steps

    @jax.jit
    def conclude(radius: Any, batch: Batch) -> tuple[AttackResult, jax.Array]:
        attack, (examples, search) = make(radius), batch
        size = jnp.zeros(len(examples.images)) if attack.size is None else attack.size(search.kept, examples.images)
        return finish(attack, examples, search), size

    def empty(radius: Any, data: Data, key: jax.Array, batch_size: int) -> Batch:
        at = np.zeros(batch_size, int)
        examples = _examples(data.at(at), at, key)
        search = jax.eval_shape(lambda: make(radius).begin(examples))
        search = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), search)
        return Batch(examples, search._replace(done=jnp.ones(batch_size, bool)))

    def trace(radius: Any, logits_fn: Partial, data: Data, key: jax.Array, batch_size: int) -> None:
        at = np.zeros(batch_size, int)
        batch = place.eval_shape(radius, empty(radius, data, key, batch_size), at == 0, data.at(at), at, key)
        run.eval_shape(radius, logits_fn, batch, -1)
        conclude.eval_shape(radius, batch)

    return lambda radius: Compiled(
        partial(place, radius),
        partial(run, radius),
        partial(conclude, radius),
        partial(empty, radius),
        partial(trace, radius),
    )


def check_alike(attack: Attack, data: Data, outputs: jax.ShapeDtypeStruct) -> None:
    """Raises if an attack holds one number per example: in the rows of a batch other examples would get it.

    Such numbers do not fit a batch of one example more. `outputs` are the model's for any number of images.
    """
    rows = len(data.labels) + 1
    images = jax.ShapeDtypeStruct((rows, *data.images.shape[1:]), data.images.dtype)
    targets = None if data.targets is None else jnp.zeros(rows, int)

    def unread(images: jax.Array) -> jax.Array:
        sums = images.sum(axis=tuple(range(1, images.ndim))).astype(outputs.dtype)
        return jnp.zeros((rows, *outputs.shape[1:]), outputs.dtype) + spread(sums, outputs)

    def begin(images: jax.Array) -> Any:
        keys = row_keys(jax.random.key(0), jnp.arange(rows))
        labels = jnp.zeros((rows, *data.labels.shape[1:]), data.labels.dtype)
        examples = Examples(images, labels, keys, targets, data.criterion)
        search = attack.begin(examples)
        # Only step sizes make a step depend on more; a transferred attack's step may hold a model of one batch size.
        if isinstance(attack.settings.get("step_size"), list):
            search = attack.step(unread, examples, search)
        return search, None if attack.size is None else attack.size(search.kept, images)

    try:
        jax.eval_shape(begin, images)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(
            f"attack {attack.name!r} must treat all examples alike, without one radius or step size per example, got "
            f"one that fits no batch of {rows} ({reason}): use its run for these"
        ) from None


def _examples(data: Any, indices: Any, key: jax.Array) -> Examples:
    """The examples of `Data` on the host or traced."""
    return Examples(data.images, data.labels, row_keys(key, jnp.asarray(indices)), data.targets, data.criterion)


def run_refilled(
    compiled: Compiled,
    logits_fn: Partial,
    data: Data,
    indices: HostArray,
    *,
    key: jax.Array,
    batch_size: int,
    refill: bool = True,
) -> Iterator[Finished]:
    """Attacks the examples `indices` and yields them as they finish, in no particular order.

    A batch runs on the device until a sixteenth of its rows is done: the host is asked rarely, and few rows idle. With
    ``refill=False`` a batch runs until its last row is done and is then replaced as a whole.
    """
    queue = deque(indices.tolist())
    rows = np.full(batch_size, -1)  # the example in each row
    batch = compiled.empty(data, key, batch_size)
    steps = 0
    patience = max(1, batch_size // 16)
    while queue or (rows >= 0).any():
        take = np.zeros(batch_size, bool)
        for row in np.flatnonzero(rows < 0)[: len(queue)]:
            rows[row], take[row] = queue.popleft(), True
        if take.any():
            at = np.maximum(rows, 0)
            batch = compiled.place(batch, take, data.at(at), at, key)
        idle = int((rows < 0).sum())
        quota = min(idle + patience, batch_size) if refill and queue else batch_size
        batch, taken = compiled.advance(logits_fn, batch, quota)
        steps += int(taken)
        done = np.asarray(batch.search.done) & (rows >= 0)
        result, size = jax.device_get(compiled.finish(batch))
        yield Finished(rows[done], jax.tree.map(lambda leaf, done=done: leaf[done], result), size[done], steps)
        rows[done] = -1


def warm_up(compiled: Compiled, logits_fn: Partial, data: Data, *, key: jax.Array, batch_size: int) -> float:
    """Compiles an attack for a batch shape without spending a model call, and returns the seconds that took."""
    started = time.perf_counter()
    at = np.zeros(batch_size, int)
    batch = compiled.place(compiled.empty(data, key, batch_size), at == 0, data.at(at), at, key)
    batch, _ = compiled.advance(logits_fn, batch, -1)
    jax.device_get(compiled.finish(batch))
    return time.perf_counter() - started
