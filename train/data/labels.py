"""Labels inside the compiled step: smoothed, mixed with those of another image, weighted by class.

Each image is mixed with its neighbour in the batch, which is shuffled: the first with the second, the third with the
fourth. Neighbours lie on the same device, and every draw comes from an example's own key, so that a step does not
depend on how the batch is divided.

References:
    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016 (smoothing).
    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from train.ranges import Fraction, NonNegative


@dataclass(frozen=True)
class Labels:
    """Softer labels of training images, and weights of their classes."""

    smoothing: Fraction = 0.0
    """Share of each label, in [0, 1), that is spread evenly over all classes."""
    mixup: NonNegative = 0.0
    """Mixes each image and its label with another, with a share drawn from Beta(mixup, mixup); 0 for no mixing."""
    cutmix: NonNegative = 0.0
    """Pastes a rectangle of another image into each, of an area drawn from Beta(cutmix, cutmix); 0 for none.
    Together with mixup, each image gets one of both at random."""
    weights: tuple[NonNegative, ...] = ()
    """Weight of each class in the loss, in the order of the classes; none for equal weights."""

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def soft(self) -> bool:
        """Whether labels become probabilities."""
        return self.smoothing > 0 or self.mixes


HARD = Labels()
"""The labels as they are."""


def neighbours(leaf: Array) -> Array:
    """The rows of an array with the first and the second one exchanged, the third and the fourth, and so on."""
    return leaf.reshape(-1, 2, *leaf.shape[1:])[:, ::-1].reshape(leaf.shape)


def smooth(labels: Array, num_classes: int, smoothing: float) -> Array:
    """Classes ``int[n]`` as probabilities ``float[n, num_classes]``, of which a share is spread evenly."""
    return (1 - smoothing) * jax.nn.one_hot(labels, num_classes) + smoothing / num_classes


def mix(
    keys: Array, images: Array, labels: Array, others: Array, other_labels: Array, options: Labels
) -> tuple[Array, Array]:
    """Mixes every image and label with another.

    Args:
        keys: one random key per example.
        images: float[n, h, w, c].
        labels: float[n, classes], probabilities.
        others: float[n, h, w, c], mixed into `images`.
        other_labels: float[n, classes], theirs.
        options: how; a compile-time constant.

    Returns:
        The mixed images and labels; a label's share is that of its image.
    """

    def one(key: Array, image: Array, label: Array, other: Array, other_label: Array) -> tuple[Array, Array]:
        choice_key, share_key, place_key = jax.random.split(key, 3)
        weights = jnp.zeros((*image.shape[:2], 1))
        if options.mixup:
            weights = _mixup_weights(share_key, image.shape, options.mixup)
        if options.cutmix:
            pasted = _cutmix_weights(share_key, place_key, image.shape, options.cutmix)
            weights = jnp.where(jax.random.bernoulli(choice_key) & (options.mixup > 0), weights, pasted)
        share = jnp.mean(weights)
        return image + weights * (other - image), label + share * (other_label - label)

    result: tuple[Array, Array] = jax.vmap(one)(keys, images, labels, others, other_labels)
    return result


def _mixup_weights(key: Array, shape: tuple[int, ...], concentration: float) -> Array:
    """The other image's weight in every pixel ``float[h, w, 1]``: the same share everywhere."""
    return jnp.full((*shape[:2], 1), jax.random.beta(key, concentration, concentration))


def _cutmix_weights(share_key: Array, place_key: Array, shape: tuple[int, ...], concentration: float) -> Array:
    """The other image's weight in every pixel ``float[h, w, 1]``: 1 inside of a random rectangle, 0 outside."""
    side = jnp.sqrt(jax.random.beta(share_key, concentration, concentration))
    inside = jnp.ones((), bool)
    for axis, (key, size) in enumerate(zip(jax.random.split(place_key), shape[:2], strict=True)):
        centre, half = jax.random.randint(key, (), 0, size), side * size / 2
        pixels = jnp.arange(size)
        within = (pixels >= jnp.round(centre - half)) & (pixels < jnp.round(centre + half))
        inside = inside & jnp.expand_dims(within, 1 - axis)
    return inside[:, :, None].astype(jnp.float32)
