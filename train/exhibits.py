"""What the attacks of an evaluation made of the first test images, for pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deformreg.attacks import Attack, AttackResult
from deformreg.evaluation import AttackOutcome, Frames, frames
from deformreg.evaluation.frames import boundaries_of
from deformreg.evaluation.quantized import to_8_bits
from train.restored import LogitsFn, Trained


class Sample(NamedTuple):
    """The first test images as the evaluation's attacks deformed them.

    Attributes:
        images: float[n, h, w, c], clean.
        labels: int32[n].
        flows: float[n, h, w, 2], in pixels: of the attack that broke the image, else of the last one that moved its
            pixels; zero if none did.
        deformed: float[n, h, w, c].
        before: int[n], predictions on the clean images.
        after: int[n], predictions on the deformed ones.
    """

    images: np.ndarray
    labels: np.ndarray
    flows: np.ndarray
    deformed: np.ndarray
    before: np.ndarray
    after: np.ndarray


class Exhibits:
    """The first images of a run, deformed by what each attack finds for them.

    Attributes:
        arrays: what they look like after the attacks so far, by name: `flows`, `deformed`, and bool[n] `broken`.
    """

    def __init__(self, trained: Trained, count: int, *, quantize: bool = False) -> None:
        self._trained, self._images, self._quantize = trained, trained.images[:count], quantize
        self._params: list[np.ndarray] = []
        self._seen = np.zeros(len(self._images), bool)
        self.arrays: dict[str, np.ndarray] = {
            "flows": np.zeros((*self._images.shape[:3], 2), np.float32),
            "deformed": self._images.copy(),
            "broken": np.zeros(len(self._images), bool),
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes what was kept in `arrays`. Raises `ValueError` for arrays of other shapes or types."""
        for name, array in self.arrays.items():
            if (arrays[name].shape, arrays[name].dtype) != (array.shape, array.dtype):
                raise ValueError(f"its array {name} is of another shape or type")
            self.arrays[name] = arrays[name]

    @property
    def at_work(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """The images that the attack at work has finished, int[k], and the leaves of their parameters."""
        shown = np.flatnonzero(self._seen)
        return shown, [leaf[shown] for leaf in self._params]

    def collect(self, attack: Attack, indices: np.ndarray, result: AttackResult) -> None:
        """Keeps a batch's result of the attack at work; zeros for images that it never saw."""
        shown = indices < len(self._images)
        self.add(indices[shown], [leaf[shown] for leaf in jax.tree.leaves(result.params)])

    def add(self, shown: np.ndarray, params: list[np.ndarray]) -> None:
        """Keeps parameters of the attack at work, as `at_work` has them."""
        if not params:
            return
        count = len(self._images)
        if not self._params:
            self._params = [np.zeros((count, *leaf.shape[1:]), leaf.dtype) for leaf in params]
        for leaf, new in zip(self._params, params, strict=True):
            leaf[shown] = new
        self._seen[shown] = True

    def conclude(self, attack: Attack, outcome: AttackOutcome) -> None:
        """Deforms the images that no earlier attack broke by what the attack that has ended found."""
        params, self._params = self._params, []
        self._seen = np.zeros_like(self._seen)
        broken, family = self.arrays["broken"], attack.perturbation
        rows = outcome.attacked_mask[: len(broken)] & ~broken
        if not params or not rows.any() or family.field is None:
            return
        structure = jax.tree.structure(jax.eval_shape(family.init, self._images))
        deform = jax.jit(partial(_deform, family.field, family.apply))
        for name, new in zip(
            ("flows", "deformed"), deform(jax.tree.unflatten(structure, params), self._images), strict=True
        ):
            self.arrays[name][rows] = np.asarray(new)[rows]
        broken |= outcome.broken_mask[: len(broken)]

    def sample(self) -> Sample:
        """The images with the network's answers; with `quantize` images of 8 bits, as the network saw them."""
        images, deformed = self._images, self.arrays["deformed"]
        if self._quantize:
            images, deformed = (np.asarray(to_8_bits(jnp.asarray(each), (0.0, 1.0))) for each in (images, deformed))
        size = self._trained.config.evaluation.batch_size
        before, after = (_predictions(self._trained.logits_fn, batch, size) for batch in (images, deformed))
        return Sample(images, self._trained.labels[: len(images)], self.arrays["flows"], deformed, before, after)


LARGEST = 32 << 20
"""Bytes of the images that are kept with the network's answers, 8 bits a value and 16 a component of a flow."""


def frames_of(sample: Sample, trained: Trained) -> Frames:
    """The first images, moved along their flows in steps, with the network's answers on the way."""
    _, height, width, channels = sample.images.shape
    count = max(LARGEST // (height * width * (channels + 4)), 1)
    images, labels, flows, deformed = (array[:count] for array in sample[:4])
    boundaries = boundaries_of(images, flows, deformed)
    size = trained.config.evaluation.batch_size
    return frames(trained.logits_fn, images, labels, flows, boundary=boundaries, batch_size=size)


def _deform(
    field: Callable[..., Array], apply: Callable[..., Array], params: Any, images: Array
) -> tuple[Array, Array]:
    return field(params, images), apply(params, images)


def _predictions(logits_fn: LogitsFn, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Classifies images in batches: memory may allow no more rows than the attacks had."""
    starts = range(0, len(images), batch_size)
    return np.concatenate([np.asarray(_classify(logits_fn, images[at : at + batch_size])) for at in starts])


@jax.jit
def _classify(logits_fn: LogitsFn, images: Array) -> Array:
    return jnp.argmax(logits_fn(images), axis=1)
