"""Which examples of a split are evaluated."""

from __future__ import annotations

import numpy as np

from train.data.order import permutation
from train.data.source import Source


def sample(source: Source, count: int, seed: int | None = None) -> np.ndarray:
    """A sample of a split's examples in random order, every class in its proportion in the split.

    A smaller sample is the beginning of a larger one. A split that is stored in random order is a sample as it is.

    Args:
        source: the split.
        count: number of examples; 0, or more than there are, for all.
        seed: of the sample; None takes the first examples of a split that is stored in random order, and 0 otherwise.

    Returns:
        ``int64[count]``, different indices.
    """
    size = len(source)
    count = min(count or size, size)
    if seed is None and source.shuffled:
        return np.arange(count)
    if source.labels is None:
        return permutation(size, seed or 0, 0)[:count]
    return balanced(source.labels(np.arange(size)), seed or 0)[:count]


def balanced(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random order in which every beginning has each class in its proportion, up to one example.

    This is systematic sampling: example k of a class of n stands at ``(k + u) / n`` between 0 and 1, with one random
    number u per class.

    Args:
        labels: ``int[n]``.
        seed: 0 or more.

    Returns:
        ``int64[n]``, a permutation.
    """
    order = permutation(len(labels), seed, 0)
    _, numbers, sizes = np.unique(labels[order], return_inverse=True, return_counts=True)
    by_class = np.argsort(numbers, kind="stable")
    ranks = np.empty(len(labels), np.int64)
    ranks[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    offsets = permutation(len(sizes), seed, 1) / len(sizes)
    return order[np.argsort((ranks + offsets[numbers]) / sizes[numbers], kind="stable")]
