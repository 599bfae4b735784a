"""The order of training examples: a pure function of the seed and the batch's number."""

from __future__ import annotations

import functools

import numpy as np


@functools.lru_cache(maxsize=4)  # a batch needs at most a few epochs, usually one
def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of ``range(size)`` that depends on nothing but its arguments.

    It sorts the raw output of a bit generator, the only random stream that NumPy promises to keep
    from version to version (NEP 19), so a run can be resumed after an upgrade.

    Args:
        size: the number of examples.
        seed: the run's seed, 0 or more.
        epoch: the pass over the data, from 0.

    Returns:
        ``int64[size]``, not writable because it is shared.
    """
    words = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(size)
    order = np.argsort(words, kind="stable")
    order.flags.writeable = False
    return order


def batch_indices(number: int, *, size: int, batch_size: int, seed: int) -> np.ndarray:
    """The examples of one global batch.

    Epochs follow each other without a gap: where ``batch_size`` does not divide ``size``, an epoch's last examples
    share a batch with the next epoch's first.

    Args:
        number: of the batch, from 0.
        size: the number of examples in the data set.
        batch_size: examples in a global batch; may exceed ``size``.
        seed: the run's seed.

    Returns:
        ``int64[batch_size]``, indices into the data set.
    """
    positions = np.arange(number * batch_size, (number + 1) * batch_size)
    epochs, offsets = np.divmod(positions, size)
    parts = [
        permutation(size, seed, int(epoch))[offsets[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)
    ]
    return np.concatenate(parts)


def batch_draws(number: int, *, batch_size: int, count: int, seed: int) -> np.ndarray:
    """Random numbers for every example of one global batch, from the same kind of stream as `permutation`.

    Args:
        number: of the batch, from 0.
        batch_size: examples in a global batch.
        count: numbers per example.
        seed: the run's seed.

    Returns:
        ``float64[batch_size, count]`` in [0, 1).
    """
    words = np.random.PCG64(np.random.SeedSequence((seed, number, 1))).random_raw(batch_size * count)
    return (words >> 11).reshape(batch_size, count) * 2.0**-53
