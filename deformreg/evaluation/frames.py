"""Images that slide along their flows, with a network's answers on the way: the gallery of an HTML report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from deformreg import _checks
from deformreg.attacks.attack import LogitsFn, as_argument
from deformreg.criteria.classification import predicted_classes
from deformreg.evaluation.data import HostArray
from deformreg.warping import Boundary, warp


class Frames(NamedTuple):
    """Images moved along growing shares of their flows, and what a network answers.

    Attributes:
        images: float[n, h, w, c], clean.
        labels: int[n].
        flows: float[n, h, w, 2], in pixels.
        boundaries: for each image the boundary of its warp.
        shares: float[s], from 0 (the clean image) to 1 (the whole flow).
        predicted: int[n, s], the class that the network names.
        confidences: float[n, s], the probability that it gives to that class.
        label_confidences: float[n, s], the probability that it gives to the label.
    """

    images: HostArray
    labels: HostArray
    flows: HostArray
    boundaries: tuple[str, ...]
    shares: HostArray
    predicted: HostArray
    confidences: HostArray
    label_confidences: HostArray


def frames(
    logits_fn: LogitsFn,
    images: ArrayLike,
    labels: ArrayLike,
    flows: ArrayLike,
    *,
    boundary: Boundary | Sequence[str] = "edge",
    num_steps: int = 20,
    batch_size: int = 250,
) -> Frames:
    """Moves images along growing shares of their flows and asks a network at each.

    Args:
        logits_fn: ``images -> logits[n, classes]``.
        images: float[n, h, w, c].
        labels: int[n].
        flows: float[n, h, w, 2], in pixels, for example the parameters that an attack by `deformreg.flow` has found.
        boundary: of the warp, one for all images or one for each.
        num_steps: steps from the clean image to the whole flow.
        batch_size: images per call of the network.

    Returns:
        The frames' answers, with the images and the flows.

    Raises:
        TypeError: labels that are not integers.
        ValueError: shapes that do not fit, labels outside the classes, or an unknown boundary.

    Example:
        >>> import jax.numpy as jnp
        >>> edge = lambda x: jnp.stack([x[:, 0, 1, 0], 0.75 - x[:, 0, 1, 0]], axis=1)  # class 0 where bright
        >>> ramp, left = jnp.arange(4.0).reshape(1, 1, 4, 1) / 2, jnp.zeros((1, 1, 4, 2)).at[..., 1].set(-0.6)
        >>> frames(edge, ramp, [0], left, num_steps=2).predicted.tolist()
        [[0, 1, 1]]
    """
    images, flows = _checks.images_on_host(images), np.asarray(flows, np.float32)
    _checks.flow_for(flows, images.shape, "flows")
    count = len(images)
    model, batch_size = as_argument(logits_fn), _checks.count("batch_size", batch_size)
    first = images[:batch_size]
    outputs = jax.eval_shape(lambda some: _checks.logits(model(some), len(first)), first)
    labels = np.asarray(_checks.class_indices("labels", labels, count, classes=outputs.shape[1]))
    boundaries = (boundary,) * count if isinstance(boundary, str) else tuple(boundary)
    for each in boundaries:
        _checks.choice("boundary", each, get_args(Boundary))
    if len(boundaries) != count:
        raise ValueError(f"boundary must be one for all {count} images or one for each, got {len(boundaries)}")
    shares = np.linspace(0, 1, _checks.count("num_steps", num_steps) + 1)
    answers = np.zeros((count, len(shares), 3))
    # A function of this call: `jit` keeps programs by function, and the weights that a network holds are in them.
    answer = jax.jit(partial(_answers))
    for name in dict.fromkeys(boundaries):
        rows = np.flatnonzero([each == name for each in boundaries])
        for start in range(0, len(rows), batch_size):
            at = rows[start : start + batch_size]
            for step, share in enumerate(shares):
                moved = _moved(images[at], flows[at] * np.float32(share), cast(Boundary, name))
                answers[at, step] = answer(model, moved, labels[at])
    predicted, confidences, of_labels = np.moveaxis(answers, -1, 0)
    return Frames(images, labels, flows, boundaries, shares, predicted.astype(int), confidences, of_labels)


@partial(jax.jit, static_argnums=2)
def _moved(images: Array, flows: Array, boundary: Boundary) -> Array:
    return warp(images, flows, boundary=boundary)


def _answers(logits_fn: Any, images: Array, labels: Array) -> Array:
    """float[n, 3]: the predicted class, its probability, and that of the label; -1 and zeros for logits that predict
    nothing."""
    logits = _checks.logits(logits_fn(images), len(images)).astype(np.float32)
    predicted = predicted_classes(logits)
    probabilities = jnp.where(predicted[:, None] < 0, 0, jax.nn.softmax(logits))
    of_labels = jnp.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    columns = [predicted, jnp.max(probabilities, axis=1), of_labels]
    return jnp.stack([column.astype(np.float32) for column in columns], axis=1)


def boundaries_of(images: HostArray, flows: HostArray, deformed: HostArray) -> tuple[str, ...]:
    """The boundaries by which flows have deformed images: for each image the one that fits best."""
    errors = []
    for name in get_args(Boundary):
        moved = np.asarray(_moved(images, flows, name))
        errors.append(np.abs(moved - deformed).reshape(len(images), -1).max(axis=1))
    return tuple(get_args(Boundary)[best] for best in np.argmin(errors, axis=0))
