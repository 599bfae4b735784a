"""Red flags in a model's outputs on clean images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from deformreg.attacks.attack import LogitsFn
from deformreg.criteria import Criterion
from deformreg.criteria.classification import criterion_or_classification
from deformreg.evaluation.flags.flag import Flag
from deformreg.evaluation.rows import HostArray


class Outputs(NamedTuple):
    """A model's outputs on the same images, float64.

    Attributes:
        calls: [5, n, ...], five calls with the same batch.
        reverse: [n, ...], from a batch in reverse order; rows in the order of the images.
        alone: [...], the first image's, from a batch of its copies.
        model_calls: rows computed.
        probabilities: ``outputs -> bool``, the criterion's; None: do not look.
    """

    calls: HostArray
    reverse: HostArray
    alone: HostArray
    model_calls: int
    probabilities: Callable[[HostArray], bool] | None

    @property
    def logits(self) -> HostArray:
        """The first call's."""
        first: HostArray = self.calls[0]
        return first

    @property
    def largest(self) -> float:
        """The largest absolute value, above zero."""
        return max(_largest(self.logits), 1e-12)

    @property
    def change_between_calls(self) -> float:
        """The largest difference between the first call and another."""
        return _largest(self.calls - self.logits)

    @property
    def random(self) -> bool:
        """Whether calls on the same images differ by more than rounding."""
        return self.change_between_calls > 1e-5 * self.largest


def _largest(values: HostArray) -> float:
    """The largest absolute value of the finite entries."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def observe_outputs(
    logits_fn: LogitsFn, images: HostArray, batch_size: int, criterion: Criterion | None = None
) -> Outputs:
    """Calls a model on every image six times, outside `jit`, where it may differ between calls.

    The model sees batches of `batch_size` rows only; the last one is filled up with its own images.
    """

    def call(images: HostArray) -> HostArray:
        return np.asarray(logits_fn(jnp.asarray(images)), np.float64)

    batches = [images[at : at + batch_size] for at in range(0, len(images), batch_size)]
    full = [batch[np.arange(batch_size) % len(batch)] for batch in batches]
    calls = np.concatenate([np.stack([call(batch) for _ in range(5)]) for batch in full], axis=1)
    reverse = np.concatenate([call(batch[::-1])[::-1] for batch in full])
    # All batches but the last are full, so the filling is at the end.
    calls, reverse = calls[:, : len(images)], reverse[: len(images)]
    alone = call(np.repeat(images[:1], batch_size, axis=0))[0]
    return Outputs(
        calls, reverse, alone, (6 * len(full) + 1) * batch_size, criterion_or_classification(criterion).probabilities
    )


def outputs_change_between_calls(outputs: Outputs) -> Flag | None:
    """Flags a model that is random."""
    if not outputs.random:
        return None
    return Flag(
        "outputs_change_between_calls",
        "Five calls on the same images gave different outputs: average over the randomness, or switch it off.",
        {"largest_change": outputs.change_between_calls, "largest_output": outputs.largest},
    )


def outputs_depend_on_the_batch(outputs: Outputs) -> Flag | None:
    """Flags a model whose output for an image changes with the rest of the batch."""
    change = max(_largest(outputs.reverse - outputs.logits), _largest(outputs.alone - outputs.logits[0]))
    if outputs.random or change <= 1e-3 * outputs.largest:
        return None
    return Flag(
        "outputs_depend_on_the_batch",
        "An image's output depends on the others of its batch: is the model in inference mode?",
        {"largest_change": change, "largest_output": outputs.largest},
    )


def logits_not_finite(outputs: Outputs) -> Flag | None:
    """Flags NaN and infinity."""
    logits = outputs.logits.reshape(len(outputs.logits), -1)
    count = int((~np.isfinite(logits)).any(axis=1).sum())
    if count == 0:
        return None
    return Flag("logits_not_finite", "Clean logits are not finite: they predict nothing.", {"examples": count})


def probabilities_not_logits(outputs: Outputs) -> Flag | None:
    """Flags outputs that are not negative and sum to one."""
    if outputs.probabilities is None or not outputs.probabilities(outputs.logits):
        return None
    return Flag(
        "probabilities_not_logits",
        "Outputs are probabilities, not logits: their losses saturate and gradient attacks fail.",
        {"smallest_output": float(outputs.logits.min()), "largest_row_sum": float(outputs.logits.sum(axis=-1).max())},
    )


OUTPUT_FLAGS = (outputs_change_between_calls, outputs_depend_on_the_batch, logits_not_finite, probabilities_not_logits)
