"""The order of training examples: a pure function of the seed and the step."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np


@functools.lru_cache(maxsize=4)  # a batch needs at most a few epochs, usually one
def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of ``range(size)`` that depends on nothing but its arguments.

    It sorts the raw output of a bit generator, the only random stream that NumPy promises to keep
    from version to version (NEP 19): a run can be resumed after an upgrade.

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


def batch_indices(step: int, *, size: int, batch_size: int, seed: int) -> np.ndarray:
    """The examples of the global batch of one step.

    Epochs follow each other without a gap: an epoch's last examples share a batch with the next
    one's first, so every example comes exactly once in every ``size`` consecutive examples that
    begin at a multiple of ``size``.

    Args:
        step: the number of the batch, from 0.
        size: the number of examples in the data set.
        batch_size: examples in a global batch; may exceed ``size``.
        seed: the run's seed.

    Returns:
        ``int64[batch_size]``, indices into the data set.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(positions, size)
    parts = [
        permutation(size, seed, int(epoch))[offsets[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)
    ]
    return np.concatenate(parts)


def batch_number(step: int, skipped: Iterable[int]) -> int:
    """The batch of a step where some batches are left out: later ones move up.

    Args:
        step: from 0.
        skipped: the numbers of batches that no step takes.

    Returns:
        The `step`-th number, from 0, that is not among them.
    """
    for batch in sorted(skipped):
        if batch <= step:
            step += 1
    return step
