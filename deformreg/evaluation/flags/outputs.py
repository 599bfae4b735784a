"""Red flags in a model's outputs on clean images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from deformreg.evaluation.data import HostArray
from deformreg.evaluation.flags.flag import Flag
from deformreg.evaluation.passes import Clean, Setting


class Outputs(NamedTuple):
    """A model's outputs on clean images, float64.

    Attributes:
        expected: [rows, ...], outputs of images from all over the data set, and of the first image again and again:
            from the clean pass.
        mixed: [rows, ...], from one batch of these images: their neighbours and places are others.
        again: [rows, ...], from the same batch once more; `mixed` itself if that equals `expected`.
        finite: bool[n], which of all outputs are usable: see `Clean`.
        largest: the largest absolute value of all outputs, above zero.
        probabilities: ``outputs -> bool``, the criterion's; None: do not look.
        model_calls: rows computed besides the clean pass.
    """

    expected: HostArray
    mixed: HostArray
    again: HostArray
    finite: HostArray
    largest: float
    probabilities: Callable[[HostArray], bool] | None
    model_calls: int

    @property
    def change_between_calls(self) -> float:
        """The largest difference between two calls on the same batch."""
        return float(changes(self.again, self.mixed).max())

    @property
    def random(self) -> bool:
        """Whether calls on the same images differ by more than rounding."""
        return self.change_between_calls > ROUNDING * self.largest


ROUNDING = 1e-5  # of the largest output: calls on the same batch differ by less


def changes(outputs: HostArray, others: HostArray) -> HostArray:
    """How far outputs differ: not at all where both are NaN or the same infinity, infinitely where only one is."""
    same = (outputs == others) | (np.isnan(outputs) & np.isnan(others))
    difference = np.subtract(outputs, others, where=~same, out=np.zeros(same.shape))
    return np.abs(np.where(np.isnan(difference), np.inf, difference))


def watched_rows(count: int, rows: int) -> HostArray:
    """The examples of a batch for `observe_outputs`: some from all over the data set, then copies of the first one."""
    some = rows - rows // 2
    return np.concatenate([np.linspace(count - 1, 0, some).astype(int), np.zeros(rows // 2, int)])


def observe_outputs(setting: Setting, clean: Clean, watched: HostArray) -> Outputs:
    """Compares the clean pass with one more batch, of the examples that it watched; with two if they differ."""

    def call() -> HostArray:
        judged = setting.forward(setting.logits_fn, setting.data._replace(targets=None).at(watched))
        return np.asarray(judged.outputs, np.float64)

    expected, mixed = clean.watched.astype(np.float64), call()
    differs = bool(changes(mixed, expected).max() > ROUNDING * clean.largest)
    return Outputs(
        expected,
        mixed,
        call() if differs else mixed,
        clean.finite,
        clean.largest,
        setting.data.criterion.probabilities,
        (1 + differs) * len(watched),
    )


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
    change = float(changes(outputs.mixed, outputs.expected).max())
    if outputs.random or change <= 1e-3 * outputs.largest:
        return None
    return Flag(
        "outputs_depend_on_the_batch",
        "An image's output depends on the others of its batch: is the model in inference mode?",
        {"largest_change": change, "largest_output": outputs.largest},
    )


def logits_not_finite(outputs: Outputs) -> Flag | None:
    """Flags NaN and infinity, but for the logits of -inf with which a model masks classes out."""
    count = int((~outputs.finite).sum())
    if count == 0:
        return None
    return Flag("logits_not_finite", "Clean logits are not finite: they predict nothing.", {"examples": count})


def probabilities_not_logits(outputs: Outputs) -> Flag | None:
    """Flags outputs that are not negative and sum to one."""
    if outputs.probabilities is None or not outputs.probabilities(outputs.expected):
        return None
    return Flag(
        "probabilities_not_logits",
        "Outputs are probabilities, not logits: their losses saturate and gradient attacks fail.",
        {
            "smallest_output": float(outputs.expected.min()),
            "largest_row_sum": float(outputs.expected.sum(axis=-1).max()),
        },
    )


OUTPUT_FLAGS = (outputs_change_between_calls, outputs_depend_on_the_batch, logits_not_finite, probabilities_not_logits)
