"""Segmentation: enough of the pixels are right."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deformreg import _checks
from deformreg.criteria import checks
from deformreg.criteria.classification import predicted_classes, sum_to_one
from deformreg.criteria.criterion import Criterion, PerExample
from deformreg.criteria.shares import needed, needed_margin, share
from deformreg.label_maps import warp_label_maps
from deformreg.losses import cross_entropy, margin


def segmentation(least: float, *, warp_labels: bool = False, outside: int | None = None) -> Criterion:
    """One class per pixel: broken where less than a share of the pixels is right.

    Pixels with a negative label do not count; an image without any that count is never broken.

    Args:
        least: in (0, 1], the share of an image's pixels that must be right.
        warp_labels: whether an attack that moves an image's pixels moves its label map, too, as it should where an
            object is displaced with its outline: see `deformreg.label_maps.warp_label_maps`. False asks for the labels
            of the clean image.
        outside: the label of pixels that moved in from outside the image, for example -1, so that they do not count;
            None is the nearest pixel's at the edge.

    Returns:
        The criterion: outputs float[n, h, w, classes], labels int[n, h, w] (signals and volumes: one spatial axis, or
        three). Its loss is the mean cross-entropy of the
        pixels that count. Its margin is minus the margin of the last pixel that is needed: if 90 of 100 pixels must be
        right, of the pixel in place 90 from the most certain down.

    Raises:
        TypeError: `least` is not a number, or `outside` is not an integer.
        ValueError: `least` is not in (0, 1], or `outside` without `warp_labels`. Later, labels or `outside` that the
            outputs have no class for.

    Example:
        >>> import jax.numpy as jnp
        >>> outputs = jnp.array([[[[2.0, 1.0], [2.0, 1.0], [0.0, 1.0], [2.0, 0.0]]]])  # three pixels say 0, one says 1
        >>> labels = jnp.zeros((1, 1, 4), int)
        >>> segmentation(0.75).broken(outputs, labels).tolist(), segmentation(0.9).broken(outputs, labels).tolist()
        ([False], [True])
        >>> segmentation(0.75).margin(outputs, labels).tolist()
        [-1.0]
    """
    outside = None if outside is None else _checks.count("outside", outside, minimum=-(2**31))
    if outside is not None and not warp_labels:
        raise ValueError(f"outside={outside} has no effect without warp_labels=True: no label moves")
    return _segmentation(share("least", least), bool(warp_labels), outside)


@cache
def _segmentation(least: float, follow: bool, outside: int | None) -> Criterion:
    def broken(outputs: Array, labels: Array) -> Array:
        right, counted = predicted_classes(outputs) == labels, labels >= 0
        axes = tuple(range(1, labels.ndim))
        return jnp.sum(right & counted, axis=axes) < needed(least, jnp.sum(counted, axis=axes))

    def of_needed_pixel(outputs: Array, labels: Array) -> Array:
        return needed_margin(least, -_per_pixel(margin, outputs, labels), _flat(labels) >= 0)

    def loss(outputs: Array, labels: Array) -> Array:
        losses, counted = _per_pixel(cross_entropy, outputs, labels), _flat(labels) >= 0
        return jnp.sum(jnp.where(counted, losses, 0), axis=1) / jnp.maximum(jnp.sum(counted, axis=1), 1)

    def check_outputs(outputs: Any, count: int, name: str = "logits_fn") -> Array:
        return checks.outputs(outputs, count, name, "[n, h, w, classes]", rank=3, last=2)

    def check_labels(labels: Any, images: tuple[int, ...], outputs: tuple[int, ...] | None) -> Any:
        shape = None if outputs is None else outputs[:-1]
        if follow and shape is not None and shape != images[:-1]:
            raise ValueError(f"warp_labels needs an output for every pixel of {images[:-1]}, got outputs of {shape}")
        classes = None if outputs is None else outputs[-1]
        if classes is not None and outside is not None and outside >= classes:
            raise ValueError(
                f"outside must be below {classes}, the number of classes, got {outside}: give a negative label for "
                "pixels that do not count"
            )
        return checks.label_map("labels", labels, images[0], shape, classes=classes)

    return Criterion(
        f"segmentation, at least {least:.4g} of the pixels" + (", labels warped" if follow else ""),
        broken,
        of_needed_pixel,
        loss,
        check_outputs,
        check_labels,
        warp_labels=(lambda labels, flow: warp_label_maps(labels, flow, outside=outside)) if follow else None,
        probabilities=sum_to_one,
    )


def _flat(values: Array) -> Array:
    return values.reshape(values.shape[0], -1)


def _per_pixel(function: PerExample, outputs: Array, labels: Array) -> Array:
    """float[n, pixels]: a loss of classes at every pixel; at pixels that do not count, of class 0."""
    flat = outputs.reshape(outputs.shape[0], -1, outputs.shape[-1])
    return jax.vmap(function)(flat, jnp.maximum(_flat(labels), 0))
