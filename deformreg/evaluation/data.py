"""The examples of an evaluation, on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from deformreg import _checks
from deformreg.criteria import Criterion, classification

HostArray = np.ndarray[Any, Any]


@dataclass(frozen=True)
class OnDemand:
    """Images that an evaluation reads when it needs them: memory holds a few batches, however many images there are.

    Every image is read once for the clean pass and once for each attack that tries it.

    Attributes:
        read: ``indices int[k] -> float[k, h, w, c]``; the same index always gives the same image.
        shape: ``(n, h, w, c)``.
        dtype: a NumPy type.

    Example:
        >>> import numpy as np
        >>> read = lambda indices: np.float32(indices)[:, None, None, None] + np.zeros((8, 8, 1), np.float32)
        >>> gray = OnDemand(read, (9, 8, 8, 1))
        >>> len(gray), gray[2:5].mean(axis=(1, 2, 3)).tolist()
        (9, [2.0, 3.0, 4.0])
    """

    read: Callable[[HostArray], HostArray]
    shape: tuple[int, ...]
    dtype: type[Any] = np.float32

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: HostArray | slice) -> HostArray:
        at = np.arange(len(self))[indices]
        images = np.asarray(self.read(at))
        if images.shape != (len(at), *self.shape[1:]) or images.dtype != self.dtype:
            raise ValueError(
                f"images must be read as {np.dtype(self.dtype)} of shape {(len(at), *self.shape[1:])}, "
                f"got {_checks.described(images)}"
            )
        return images


class Data(NamedTuple):
    """A data set on the host: images, what is right for them, the classes to reach or None, and the criterion."""

    images: Any  # an array or `OnDemand`
    labels: HostArray
    targets: HostArray | None
    criterion: Criterion = classification()

    def at(self, indices: HostArray | slice) -> Data:
        """Picks examples, with their images as an array."""
        return self.with_images(indices, self.images[indices])

    def with_images(self, indices: HostArray | slice, images: HostArray) -> Data:
        """Picks examples, with other images."""
        targets = None if self.targets is None else self.targets[indices]
        return self._replace(images=images, labels=self.labels[indices], targets=targets)

    def filler(self, rows: int) -> Data:
        """The first example in every row of a batch that nobody looks at."""
        repeated: Data = jax.tree.map(lambda leaf: np.repeat(leaf, rows, axis=0), self.at(slice(0, 1)))
        return repeated


def spaced(indices: HostArray, count: int) -> HostArray:
    """At most `count` of the indices, evenly spaced."""
    chosen: HostArray = indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)]
    return chosen
