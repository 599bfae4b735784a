"""Passes of a whole data set through a model, and what the criterion says of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from deformreg import _checks
from deformreg.criteria import Criterion
from deformreg.criteria.checks import usable
from deformreg.criteria.classification import predicted_classes
from deformreg.evaluation.data import Data, HostArray
from deformreg.evaluation.devices import ROWS, WHOLE, Devices
from deformreg.evaluation.outcomes import Collect, ProgressCallback, Recall


class Judged(NamedTuple):
    """A model's outputs, and what a criterion says of them: one number or decision per example.

    Attributes:
        outputs: the outputs.
        broken: bool[n], whether they are broken, or reach the targets where there are some.
        losses: float[n], the criterion's loss.
        margins: float[n], its margin.
    """

    outputs: Any
    broken: Any
    losses: Any
    margins: Any


class Setting(NamedTuple):
    """What all attacks of an evaluation share. `forward`, ``(logits_fn, data) -> Judged``, is jitted and checked.

    `batch_size` counts the rows on all devices.
    """

    logits_fn: Partial
    forward: Any
    data: Data
    batch_size: int
    refill: bool
    image_range: tuple[float, float]
    progress: ProgressCallback | None
    collect: Collect | None
    recall: Recall | None = None
    quantize: bool = False


def padded(count: int, batch_size: int) -> int:
    """Rows computed for `count` examples in full batches."""
    return -(-count // batch_size) * batch_size


def compile_forward(criterion: Criterion, devices: Devices) -> Callable[[], Any]:
    """Jits the pass of a batch through a model, with checks of what the model returns: see `Devices.jit`."""

    def forward(logits_fn: Partial, data: Any) -> Judged:
        returned = _checks.called("logits_fn", logits_fn, data.images)
        outputs = criterion.check_outputs(returned, len(data.images), "logits_fn")
        criterion.check_labels(data.labels, data.images.shape, outputs.shape)
        reached = data.targets is not None and predicted_classes(outputs) == data.targets
        broken = criterion.broken(outputs, data.labels) if data.targets is None else reached
        return Judged(outputs, broken, criterion.loss(outputs, data.labels), criterion.margin(outputs, data.labels))

    return devices.jit(forward, (WHOLE, ROWS), ROWS)


def in_batches(setting: Setting, data: Data) -> Iterator[tuple[slice, Judged]]:
    """Passes examples through the model in batches of the one shape: where each batch is, and what it says of it."""
    for first in range(0, len(data.images), setting.batch_size):
        place = slice(first, min(first + setting.batch_size, len(data.images)))
        count = place.stop - first
        filled = jax.tree.map(partial(_filled, setting.batch_size - count), data.at(place))
        # On the host: on the device, JAX would compile a slice of every shape.
        judged = jax.device_get(setting.forward(setting.logits_fn, filled))
        yield place, jax.tree.map(lambda leaf, count=count: leaf[:count], judged)


class Clean(NamedTuple):
    """What a model makes of the images without an attack.

    Attributes:
        broken: bool[n], which outputs are broken.
        losses: float[n], the criterion's loss.
        margins: float[n], its margin.
        finite: bool[n], which outputs hold neither NaN nor +inf, and a finite number for every decision.
        largest: the largest absolute value of a finite output, above zero.
        watched: the outputs of some examples.
    """

    broken: HostArray
    losses: HostArray
    margins: HostArray
    finite: HostArray
    largest: float
    watched: HostArray


def clean_pass(setting: Setting, watched: HostArray) -> Clean:
    """Passes all images through the model, and keeps the outputs of the examples `watched` (indices)."""
    count = len(setting.data.images)
    seen = Clean(np.zeros(count, bool), np.zeros(count), np.zeros(count), np.zeros(count, bool), 1e-12, np.zeros(0))
    for place, judged in in_batches(setting, setting.data._replace(targets=None)):
        outputs = np.asarray(judged.outputs)
        finite = np.isfinite(outputs)
        seen.broken[place], seen.losses[place], seen.margins[place] = judged.broken, judged.losses, judged.margins
        seen.finite[place] = _all_usable(outputs)
        if setting.data.criterion.probabilities is None:  # not logits: whether -inf is an answer, the margin says
            seen.finite[place] &= seen.margins[place] < np.inf
        if place.start == 0:
            seen = seen._replace(watched=np.zeros((len(watched), *outputs.shape[1:]), outputs.dtype))
        here = (watched >= place.start) & (watched < place.stop)
        seen.watched[here] = outputs[watched[here] - place.start]
        seen = seen._replace(
            largest=max(seen.largest, float(np.abs(outputs, where=finite, out=np.zeros_like(outputs)).max()))
        )
    return seen


def _all_usable(outputs: HostArray) -> HostArray:
    """bool[n]: whether outputs are usable for every decision along the axes between the first and the last."""
    rows = outputs.reshape(len(outputs), -1, outputs.shape[-1] if outputs.ndim > 1 else 1)
    found: HostArray = np.all(usable(rows), axis=1)
    return found


def find_broken(setting: Setting, data: Data) -> HostArray:
    """Which examples the model breaks on, or which reach their targets."""
    broken = np.zeros(len(data.images), bool)
    for place, judged in in_batches(setting, data):
        broken[place] = judged.broken
    return broken


def _filled(missing: int, batch: HostArray) -> HostArray:
    """The batch followed by copies of its last example."""
    return np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1), mode="edge")
