"""Runs an attack over many examples in batches of one shape; waiting examples take the rows of finished ones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from deformreg._arrays import choose, spread
from deformreg._programs import jitted
from deformreg.attacks.attack import Attack, AttackResult, Examples, Search, advance, finish, row_keys
from deformreg.evaluation.data import Data, HostArray
from deformreg.evaluation.devices import ROWS, WHOLE, Devices


class Turn(NamedTuple):
    """What a batch has after a turn.

    Attributes:
        search: the state of the rows.
        computed: rows that passed through a step in this turn, idle ones included.
        result: of each row.
        size: float[rows], the share of the budget that each row uses.
    """

    search: Search
    computed: jax.Array
    result: AttackResult
    size: jax.Array


class Compiled(NamedTuple):
    """The compiled functions of an attack at a radius. A new model or radius of the same types compiles nothing new.

    Attributes:
        turn: ``(logits_fn, search, take, data, keys, quota) -> Turn``: starts new examples in the rows where `take` is
            true, and steps until `quota` rows are done. `data` and `keys` are of the examples in the rows.
        trace: the same arguments: traces `turn`, which raises what it would raise. `turn` does not trace again.
        idle: ``(data, keys) -> search`` whose rows are all done.
    """

    turn: Callable[[Partial, Search, HostArray, Data, jax.Array, int], Turn]
    trace: Callable[[Partial, Search, HostArray, Data, jax.Array, int], Any]
    idle: Callable[[Data, jax.Array], Search]

    def idle_turn(self, data: Data, key: jax.Array, batch_size: int) -> tuple[Any, ...]:
        """The arguments after the model of a turn in which no row has an example."""
        examples = data.filler(batch_size), example_keys(key, 0, np.zeros(batch_size, int))
        return self.idle(*examples), np.zeros(batch_size, bool), *examples, batch_size


class Finished(NamedTuple):
    """Examples that are finished, on the host.

    Attributes:
        indices: int[k], which examples.
        result: of these examples.
        size: float[k], the share of the budget used.
        computed: rows that passed through a step so far, idle ones included.
    """

    indices: HostArray
    result: AttackResult
    size: HostArray
    computed: int


_ONE = Devices()


def compile_attack(make: Callable[[Any], Attack], devices: Devices = _ONE) -> Callable[[Any], Compiled]:
    """Jits an attack for all radii: the radius is traced, so it compiles once per batch shape, as one program."""

    def one_turn(
        radius: Any, logits_fn: Partial, search: Search, take: Any, data: Data, keys: Any, quota: Any
    ) -> Turn:  # fmt: skip
        attack, examples = make(radius), _examples(data, keys)
        search = choose(take, attack.begin(examples), search)
        search, steps = advance(attack, logits_fn, examples, search, quota, axis=devices.axis)
        computed = steps * len(take)
        computed = computed if devices.axis is None else jax.lax.psum(computed, devices.axis)
        size = jnp.zeros(take.shape) if attack.size is None else attack.size(search.kept, examples.images)
        return Turn(search, computed, finish(attack, examples, search), size)

    rows, whole = cast(Any, ROWS), cast(Any, WHOLE)
    results = Turn(rows, whole, rows, rows)
    turn = devices.jit(one_turn, (WHOLE, WHOLE, ROWS, ROWS, ROWS, ROWS, WHOLE), results)

    def idle_search(radius: Any, data: Data, keys: jax.Array) -> Search:
        search = jax.eval_shape(lambda: make(radius).begin(_examples(data, keys)))
        zeros: Any = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), search)
        idle: Search = zeros._replace(done=np.ones(len(keys), bool))
        return idle

    return lambda radius: Compiled(
        partial(turn(), radius), partial(turn().eval_shape, radius), partial(idle_search, radius)
    )  # fmt: skip


def example_keys(key: jax.Array, number: int, indices: HostArray) -> jax.Array:
    """The random keys of the examples in a batch for attack `number`."""
    keys: jax.Array = _example_keys()(key, number, indices)
    return keys


@jitted
def _example_keys(key: jax.Array, number: int, indices: HostArray) -> jax.Array:
    """One small program for all attacks: within each of theirs it would be compiled again."""
    return row_keys(jax.random.fold_in(key, number), jnp.asarray(indices))


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


def _examples(data: Any, keys: Any) -> Examples:
    """The examples of `Data` on the host or traced."""
    return Examples(data.images, data.labels, keys, data.targets, data.criterion)


def run_refilled(
    compiled: Compiled,
    logits_fn: Partial,
    data: Data,
    indices: HostArray,
    *,
    key: jax.Array,
    number: int,
    batch_size: int,
    refill: bool = True,
) -> Iterator[Finished]:
    """Runs attack `number` on the examples `indices` and yields them as they finish, in no particular order.

    A batch runs on the devices until a sixteenth of its rows is done: the host is asked rarely, and few rows idle. With
    ``refill=False`` a batch runs until its last row is done and is then replaced as a whole.
    """
    queue = deque(indices.tolist())
    rows = np.full(batch_size, -1)  # the example in each row
    search, _, filler, *_ = compiled.idle_turn(data, key, batch_size)
    images = filler.images
    computed = 0
    patience = max(1, batch_size // 16)
    while queue or (rows >= 0).any():
        take = np.zeros(batch_size, bool)
        for row in np.flatnonzero(rows < 0)[: len(queue)]:
            rows[row], take[row] = queue.popleft(), True
        idle = int((rows < 0).sum())
        quota = min(idle + patience, batch_size) if refill and queue else batch_size
        at = np.maximum(rows, 0)
        images = images.copy()  # JAX may hold on to the array that it was given
        images[take] = data.images[at[take]]
        keys = example_keys(key, number, at)
        batch = data.with_images(at, images)
        search, more, result, size = compiled.turn(logits_fn, search, take, batch, keys, quota)
        more, done, result, size = jax.device_get((more, search.done, result, size))
        computed += int(more)
        finished = done & (rows >= 0)
        part = jax.tree.map(lambda leaf, finished=finished: leaf[finished], result)
        yield Finished(rows[finished], part, size[finished], computed)
        rows[finished] = -1


def warm_up(compiled: Compiled, logits_fn: Partial, data: Data, *, key: jax.Array, batch_size: int) -> float:
    """Compiles an attack for a batch shape without spending a model call, and returns the seconds that took."""
    started = time.perf_counter()
    jax.block_until_ready(compiled.turn(logits_fn, *compiled.idle_turn(data, key, batch_size)))
    return time.perf_counter() - started
