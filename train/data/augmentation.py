"""Augmentation inside the compiled step: pure functions of a key and ``uint8`` images.

Each example's random draws depend on its position in the global batch, so a step gives the same
images on 1, 2, 4 or 8 devices::

    key = jax.random.fold_in(run_key, step)
    positions = jnp.arange(n) + jax.lax.axis_index("data") * n  # under pmap; else the default
    images = augment(key, batch["image"], options, positions=positions)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jax import Array

from train.data.rand import rand
from train.data.trivial import trivial
from train.ranges import Pixels, Share


@dataclass(frozen=True)
class Augmentation:
    """Changes to training images: resize, resized crop, pad by `shift`, crop, flip, RandAugment, TrivialAugment, erase.

    Evaluation resizes in the same way and crops the centre. The paper's recipe for CIFAR-10 is
    ``Augmentation(resize=36, crop=32, flip=True)``.
    """

    resize: Pixels = 0
    """Height and width, in pixels, to which images are resized (bilinear); 0 keeps their size."""
    crop: Pixels = 0
    """Height and width, in pixels, of the crop, random in training and central in evaluation; 0 keeps the size."""
    shift: Annotated[int, Interval(ge=0, le=512)] = 0
    """Largest random shift in training, in pixels, along each axis; black moves in at the border."""
    flip: bool = False
    """Mirrors each training image left to right with probability 1/2."""
    min_area: Share = 1.0
    """Smallest share of a training image's area that a random crop shows, of an aspect ratio from 3/4 to 4/3,
    resized to the image's size; 1 for no such crop. ImageNet's recipe takes 0.08."""
    trivial: bool = False
    """Changes each training image by one random operation of TrivialAugment: moves, colours, contrast."""
    rand: Annotated[int, Interval(ge=0, le=16)] = 0
    """Number of random operations by which RandAugment changes each training image in turn; 0 for none, 2 is usual."""
    rand_strength: Share = 0.9
    """Strength of RandAugment's operations, as a share of the largest.
    Magnitude 9 of 10, as timm counts, is 0.9; 9 of 30, as torchvision counts, is 0.3."""
    erase: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Probability that a random rectangle of a training image, 2 to 33 % of its area, is replaced by noise."""


def output_shape(options: Augmentation, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape ``(h, w, c)`` of augmented images of ``image_shape``.

    Raises:
        ValueError: a negative option, or a crop larger than the image it is taken from.
    """
    height, width, channels = image_shape
    if min(options.resize, options.crop, options.shift) < 0:
        raise ValueError(f"resize, crop and shift must be 0 or more pixels, got {options}")
    if options.resize:
        height = width = options.resize
    if options.crop > min(height, width):
        raise ValueError(f"crop {options.crop} is larger than the images of {height} x {width}")
    return options.crop or height, options.crop or width, channels


def to_float(images: Array) -> Array:
    """``uint8`` images in 0..255 as ``float32`` in [0, 1]; float images pass unchanged."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    return images


def example_keys(key: Array, positions: Array) -> Array:
    """One key for each position ``int[n]`` of the global batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)


def augment(key: Array, images: Array, options: Augmentation, *, positions: Array | None = None) -> Array:
    """Augments training images.

    Args:
        key: a key for this step, the same on every device.
        images: ``uint8[n, h, w, c]``.
        options: what to do; a compile-time constant.
        positions: ``int[n]``, the examples' places in the global batch; None means that the
            images are the global batch.

    Returns:
        ``float32[n, *output_shape]`` in [0, 1]. An example's result depends on the key and on its
        position, not on the other examples (after resizing, the last bit may differ between batch
        sizes).
    """
    height, width, _ = output_shape(options, images.shape[1:])
    positions = jnp.arange(len(images)) if positions is None else positions
    images = _resize(images, options.resize)
    if options.min_area < 1:
        images = jax.vmap(partial(_crop_and_resize, min_area=options.min_area))(
            _other_keys(key, positions, 1), to_float(images)
        )
    pad = options.shift
    rows, columns = images.shape[1] + 2 * pad - height, images.shape[2] + 2 * pad - width
    limits = jnp.array([rows + 1, columns + 1, 2])
    draws = jax.vmap(lambda key: jax.random.randint(key, (3,), 0, limits))(example_keys(key, positions))
    if rows or columns:
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        images = jax.vmap(
            lambda image, corner: jax.lax.dynamic_slice(
                image, (corner[0], corner[1], 0), (height, width, image.shape[-1])
            )
        )(padded, draws)
    if options.flip:
        images = jnp.where(draws[:, 2, None, None, None] == 1, images[:, :, ::-1], images)
    if options.rand:
        images = rand(_other_keys(key, positions, 4), to_float(images), options.rand, options.rand_strength)
    if options.trivial:
        images = trivial(_other_keys(key, positions, 3), to_float(images))
    if options.erase:
        images = jax.vmap(partial(_erase, probability=options.erase))(_other_keys(key, positions, 2), to_float(images))
    return to_float(images)


def _other_keys(key: Array, positions: Array, number: int) -> Array:
    """Keys per example for one more change: an option that is off leaves the draws of the others as they are."""
    return jax.vmap(jax.random.fold_in, (0, None))(example_keys(key, positions), number)


def _sides(key: Array, low: float, high: float, ratio: float, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The sides of a random rectangle, in pixels: a share of the area from `low` to `high`, an aspect up to `ratio`."""
    area_key, aspect_key = jax.random.split(key)
    area = jax.random.uniform(area_key, minval=low, maxval=high) * shape[0] * shape[1]
    aspect = jnp.exp(jax.random.uniform(aspect_key, minval=-math.log(ratio), maxval=math.log(ratio)))
    # The whole image has its own aspect, whatever was drawn.
    return jnp.minimum(jnp.sqrt(area * aspect), shape[0]), jnp.minimum(jnp.sqrt(area / aspect), shape[1])


def _crop_and_resize(key: Array, image: Array, *, min_area: float) -> Array:
    side_key, *place_keys = jax.random.split(key, 3)
    sides = jnp.stack(_sides(side_key, min_area, 1.0, 4 / 3, image.shape))
    size = jnp.array(image.shape[:2])
    starts = jnp.stack([jax.random.uniform(each) for each in place_keys]) * (size - sides)
    scale = size / sides
    resized: Array = jax.image.scale_and_translate(image, image.shape, (0, 1), scale, -starts * scale, "bilinear")
    return resized


def _erase(key: Array, image: Array, *, probability: float) -> Array:
    chance_key, side_key, noise_key, *place_keys = jax.random.split(key, 5)
    inside = jax.random.bernoulli(chance_key, probability)
    sides = _sides(side_key, 0.02, 1 / 3, 10 / 3, image.shape)
    for axis, (each, side) in enumerate(zip(place_keys, sides, strict=True)):
        start, pixels = jax.random.uniform(each) * (image.shape[axis] - side), jnp.arange(image.shape[axis])
        inside = inside & jnp.expand_dims((pixels >= start) & (pixels < start + side), 1 - axis)
    return jnp.where(inside[:, :, None], jax.random.uniform(noise_key, image.shape), image)


def center_view(images: Array, options: Augmentation) -> Array:
    """The images for evaluation: resized like training images and cropped at the centre, without randomness.

    Args:
        images: ``uint8[n, h, w, c]``.
        options: the training options; only ``resize`` and ``crop`` apply.

    Returns:
        ``float32[n, *output_shape]`` in [0, 1].
    """
    height, width, _ = output_shape(options, images.shape[1:])
    images = _resize(images, options.resize)
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return to_float(images[:, top : top + height, left : left + width])


def _resize(images: Array, size: int) -> Array:
    """Bilinear, as float; images that already have the size stay ``uint8``, which is exact and smaller."""
    if not size or images.shape[1:3] == (size, size):
        return images
    resized: Array = jax.image.resize(to_float(images), (len(images), size, size, images.shape[-1]), "bilinear")
    return resized
