"""Red flags in a model's outputs on clean images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from deformreg.evaluation.flags.flag import Flag
from deformreg.evaluation.rows import HostArray


class Outputs(NamedTuple):
    """A model's outputs on clean images, float64.

    Attributes:
        logits: [n, classes], of all images, from the clean pass.
        mixed: [rows, classes], from one batch of images from all over the data set beside copies of the first image.
        expected: [rows, classes], the logits of the same images from the clean pass.
        again: [rows, classes], from the same mixed batch once more; `mixed` itself if that equals `expected`.
        model_calls: rows computed besides the clean pass.
    """

    logits: HostArray
    mixed: HostArray
    expected: HostArray
    again: HostArray
    model_calls: int

    @property
    def largest(self) -> float:
        """The largest absolute value, above zero."""
        return max(_largest(self.logits), 1e-12)

    @property
    def change_between_calls(self) -> float:
        """The largest difference between two calls on the same batch."""
        return _largest(self.again - self.mixed)

    @property
    def random(self) -> bool:
        """Whether calls on the same images differ by more than rounding."""
        return self.change_between_calls > ROUNDING * self.largest


ROUNDING = 1e-5  # of the largest output: calls on the same batch differ by less


def _largest(values: HostArray) -> float:
    """The largest absolute value of the finite entries."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def observe_outputs(call: Callable[[HostArray], HostArray], images: HostArray, logits: HostArray, rows: int) -> Outputs:
    """Compares the clean pass with one more batch, in which images have other neighbours and other places.

    Args:
        call: the compiled model, for batches of `rows` images.
        images: float[n, h, w, c].
        logits: [n, classes], the clean pass.
        rows: the batch size.

    Returns:
        The outputs.
    """
    some = rows - rows // 2
    at = np.concatenate([np.linspace(len(images) - 1, 0, some).astype(int), np.zeros(rows // 2, int)])
    batch, logits = images[at], logits.astype(np.float64)
    mixed, expected = call(batch).astype(np.float64), logits[at]
    if _largest(mixed - expected) <= ROUNDING * max(_largest(logits), 1e-12):
        return Outputs(logits, mixed, expected, mixed, rows)
    return Outputs(logits, mixed, expected, call(batch).astype(np.float64), 2 * rows)


def outputs_change_between_calls(outputs: Outputs) -> Flag | None:
    """Flags a model that is random."""
    if not outputs.random:
        return None
    return Flag(
        "outputs_change_between_calls",
        "Two calls on the same images gave different outputs: average over the randomness, or switch it off.",
        {"largest_change": outputs.change_between_calls, "largest_output": outputs.largest},
    )


def outputs_depend_on_the_batch(outputs: Outputs) -> Flag | None:
    """Flags a model whose output for an image changes with the rest of the batch."""
    change = _largest(outputs.mixed - outputs.expected)
    if outputs.random or change <= 1e-3 * outputs.largest:
        return None
    return Flag(
        "outputs_depend_on_the_batch",
        "An image's output depends on the others of its batch: is the model in inference mode?",
        {"largest_change": change, "largest_output": outputs.largest},
    )


def logits_not_finite(outputs: Outputs) -> Flag | None:
    """Flags NaN and infinity."""
    count = int((~np.isfinite(outputs.logits)).any(axis=1).sum())
    if count == 0:
        return None
    return Flag("logits_not_finite", "Clean logits are not finite: they predict nothing.", {"examples": count})


def probabilities_not_logits(outputs: Outputs) -> Flag | None:
    """Flags outputs that are not negative and sum to one."""
    sums = outputs.logits.sum(axis=1)
    if not ((outputs.logits >= 0).all() and np.abs(sums - 1).max() < 1e-3):  # false for NaN
        return None
    return Flag(
        "probabilities_not_logits",
        "Outputs are probabilities, not logits: their losses saturate and gradient attacks fail.",
        {"smallest_output": float(outputs.logits.min()), "largest_row_sum": float(sums.max())},
    )


OUTPUT_FLAGS = (outputs_change_between_calls, outputs_depend_on_the_batch, logits_not_finite, probabilities_not_logits)
