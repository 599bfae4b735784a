"""Test images as a network sees them: in memory, or read when an evaluation needs them."""

from __future__ import annotations

import hashlib
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from deformreg.evaluation import OnDemand
from train.data import Augmentation, Source, center_view, output_shape
from train.errors import DataError

Images = np.ndarray | OnDemand

IN_MEMORY = 1 << 30
"""Bytes of images that are kept in memory; more are read when they are needed."""

_CHUNK = 256
"""Images that are read at once."""

_COMPARED = 64
"""Images on demand that stand for all when two sets of images are compared."""


class Views(NamedTuple):
    """Test images.

    Attributes:
        images: float[n, h, w, c] in [0, 1].
        labels: int32[n].
        contents: a hash of both.
    """

    images: Images
    labels: np.ndarray
    contents: str


def open_views(source: Source, indices: np.ndarray, augmentation: Augmentation, *, tolerant: bool = False) -> Views:
    """Opens the examples of a source at `indices`, without those that cannot be read.

    Args:
        source: the split.
        indices: which examples, in this order.
        augmentation: says how a network sees an image.
        tolerant: whether the source tolerates unreadable examples: these are looked for now.

    Raises:
        DataError: one cannot be read and the source does not tolerate it, or none can.
    """
    view = jax.jit(partial(center_view, options=augmentation))

    def read(indices: np.ndarray) -> np.ndarray:
        images, _ = source.read(indices)
        # A few sizes only, because each compiles: powers of two.
        size = 1 << max(len(images) - 1, 0).bit_length()
        return np.asarray(view(np.pad(images, [(0, size - len(images)), *[(0, 0)] * 3])))[: len(images)]

    shape = (len(indices), *output_shape(augmentation, source.image_shape))
    chunks = [indices[at : at + _CHUNK] for at in range(0, len(indices), _CHUNK)]
    if 4 * math.prod(shape) <= IN_MEMORY:
        images = np.empty(shape, np.float32)
        for at, chunk in enumerate(chunks):
            images[at * _CHUNK : at * _CHUNK + len(chunk)] = read(chunk)
        labels, readable = _labels(source, indices, chunks), _readable(source, indices)
        images, labels = images[readable], labels[readable]
        return Views(images, labels, digest((images, labels)))
    labels = _labels(source, indices, chunks)
    if tolerant:
        for chunk in chunks:
            source.read(chunk)
    readable = _readable(source, indices)
    indices, labels = indices[readable], labels[readable]

    def read_all(at: np.ndarray) -> np.ndarray:
        parts = [read(indices[at[first : first + _CHUNK]]) for first in range(0, len(at), _CHUNK)]
        return np.concatenate([np.zeros((0, *shape[1:]), np.float32), *parts])

    some = read_all(np.linspace(0, len(indices) - 1, min(_COMPARED, len(indices))).astype(int))
    contents = hashlib.sha256(f"{source.fingerprint} {digest((indices, labels, some))}".encode()).hexdigest()
    return Views(OnDemand(read_all, (len(indices), *shape[1:])), labels, contents)


def _labels(source: Source, indices: np.ndarray, chunks: list[np.ndarray]) -> np.ndarray:
    if source.labels is not None:
        return source.labels(indices)
    return np.concatenate([source.read(chunk)[1] for chunk in chunks])


def _readable(source: Source, indices: np.ndarray) -> np.ndarray:
    readable: np.ndarray = ~source.unreadable(indices)
    if not readable.any():
        raise DataError(
            f"{source.name}: none of these {len(indices)} can be read; repair them, or --examples takes more"
        )
    return readable


def digest(tree: Any) -> str:
    """A hash of all arrays of a tree, with their types and shapes."""
    found = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        found.update(f"{leaf.dtype}{leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return found.hexdigest()
