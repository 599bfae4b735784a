"""Models on which the best attack is known."""

import jax.numpy as jnp
import numpy as np


def linear_model(shape, seed=0):
    """Two classes, the gap linear in the image: ``logits_fn``, the weights of class 1 over class 0, and the offset."""
    weights = np.random.default_rng(seed).normal(size=shape).astype(np.float32)

    def logits_fn(images, offset=0.0):
        gap = jnp.sum(images * weights, axis=(1, 2, 3)) + offset
        return jnp.stack([jnp.zeros_like(gap), gap], axis=1)

    return logits_fn, weights


def ramps(count, height=4, width=6, seed=0):
    """Images that rise by a slope of their own from left to right, and a model that reads all but the border columns.

    A displacement by dx raises a pixel by ``slope * dx`` exactly, so the model's gap is linear in the flow.
    """
    slopes = np.random.default_rng(seed).uniform(0.5, 1.5, count).astype(np.float32)
    images = slopes[:, None, None, None] * np.broadcast_to(
        np.arange(width, dtype=np.float32)[None, None, :, None], (count, height, width, 1)
    )
    weights = np.random.default_rng(seed + 1).normal(size=(height, width)).astype(np.float32)
    weights[:, :2] = weights[:, -2:] = 0
    weights -= weights.sum() / (height * (width - 4)) * (np.arange(width) >= 2) * (np.arange(width) < width - 2)
    return images, slopes, weights


def ramp_model(weights, gap):
    """Class 0 by `gap` on every undeformed ramp of `ramps` (whose weighted sum is its slope's share of the weights)."""

    def logits_fn(images):
        margin = gap - jnp.sum(images[..., 0] * weights, axis=(1, 2))
        return jnp.stack([margin, jnp.zeros_like(margin)], axis=1)

    return logits_fn


def perceptron(inputs, classes=5, seed=0, hidden=24):
    """A small nonlinear model of pixel values in [0, 1]."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(inputs, hidden)).astype(np.float32) / np.sqrt(inputs) * 2
    second = rng.normal(size=(hidden, classes)).astype(np.float32)

    def logits_fn(images):
        return jnp.tanh((images - 0.5).reshape(images.shape[0], -1) @ first) @ second

    return logits_fn
