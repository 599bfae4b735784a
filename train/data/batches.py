"""Batches for training and evaluation, read ahead and sent to the device ahead where that takes long."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from train.data.order import batch_draws, batch_indices
from train.data.source import Source
from train.data.view import NUM_DRAWS
from train.errors import DataError

Batch = dict[str, np.ndarray]
_Host = TypeVar("_Host")
_Device = TypeVar("_Device")


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    first: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Shuffled batches without end, each a pure function of the seed and its number.

    Starting at batch ``k`` gives exactly what an uninterrupted run sees from batch ``k`` on, so a checkpoint needs no
    state of the input. Each process reads its contiguous slice of every global batch.

    Args:
        source: the training examples.
        batch_size: examples in a global batch, over all processes.
        seed: gives the order, which differs in every epoch.
        first: the number of the first batch to give, from 0.
        process_index: which slice of every global batch to give.
        process_count: the number of slices.

    Yields:
        ``{"image": uint8[n, h, w, c], "label": int32[n], "position": int32[n]}``, ``n = batch_size / process_count``;
        ``position`` is the example's place in the global batch, from which a step draws its random numbers.

    Raises:
        DataError: ``batch_size`` is not divisible by ``process_count``, or the seed is negative.
    """
    part = _process_slice(batch_size, process_index, process_count)
    positions = np.arange(part.start, part.stop, dtype=np.int32)
    if seed < 0 or first < 0:
        raise DataError(f"seed {seed} and first batch {first} must be 0 or more")

    def read(number: int) -> Batch:
        # NumPy orders a whole batch in microseconds. Grain's own shuffle calls Python for every
        # example, a millisecond a batch of 128 that the training step would wait for.
        indices = batch_indices(number, size=len(source), batch_size=batch_size, seed=seed)
        if source.random:
            draws = batch_draws(number, batch_size=batch_size, count=NUM_DRAWS, seed=seed)
            images, labels = source.read(indices[part], draws[part])
        else:
            images, labels = source.read(indices[part])
        return {"image": images, "label": labels, "position": positions}

    return _in_order(read, range(first, sys.maxsize), ahead=not source.in_memory)


def eval_batches(source: Source, *, batch_size: int, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
    """Every example once, in order; the last batch is filled up, so that all have one shape.

    Args:
        source: the examples.
        batch_size: examples in a global batch, over all processes.
        process_index: which slice of every global batch to give.
        process_count: the number of slices.

    Yields:
        ``{"image": uint8[n, h, w, c], "label": int32[n], "valid": bool[n]}``. Where ``valid`` is False, the example
        repeats the last one or replaces an unreadable one and must not be counted. All processes yield the same
        number of batches.

    Raises:
        DataError: ``batch_size`` is not divisible by ``process_count``.
    """
    part = _process_slice(batch_size, process_index, process_count)

    def read(number: int) -> Batch:
        indices = np.arange(number * batch_size, (number + 1) * batch_size)[part]
        images, labels = source.read(np.minimum(indices, len(source) - 1))
        valid = indices < len(source)
        valid[valid] = ~source.unreadable(indices[valid])
        return {"image": images, "label": labels, "valid": valid}

    return _in_order(read, range(-(-len(source) // batch_size)), ahead=not source.in_memory)


def device_prefetch(batches: Iterable[_Host], put: Callable[[_Host], _Device], depth: int = 2) -> Iterator[_Device]:
    """Keeps ``depth`` batches on their way to the device while the current one is used.

    Args:
        batches: host batches.
        put: starts the transfer of one batch, for example ``jax.device_put``; must not wait.
        depth: batches in flight, at least 1.

    Yields:
        What ``put`` returned, in order.
    """
    iterator = iter(batches)
    queue = deque(put(batch) for batch in itertools.islice(iterator, depth))
    while queue:
        yield queue.popleft()
        # After the yield: the step that uses the batch was dispatched before the next transfer.
        queue.extend(put(batch) for batch in itertools.islice(iterator, 1))


def _process_slice(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or batch_size % process_count:
        raise DataError(
            f"batch size {batch_size} is not divisible by {process_count} processes; choose a multiple of "
            f"{process_count}"
        )
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _in_order(read: Callable[[int], Batch], numbers: range, *, ahead: bool) -> Iterator[Batch]:
    """Reads the batches of the numbers: `ahead` of the consumer in a thread of Grain's, or each when it is wanted."""
    if not ahead:  # handing a batch from thread to thread takes many times as long as gathering rows in memory
        return map(read, numbers)
    import grain

    # One thread is enough: decoding uses more inside `read`.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    dataset = grain.MapDataset.range(numbers.start, numbers.stop).map(read)
    return iter(dataset.to_iter_dataset(options))
