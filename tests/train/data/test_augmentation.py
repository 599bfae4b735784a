"""Augmentation inside the step."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import data
from train.data import Augmentation


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (64, 10, 12, 3), dtype=np.uint8))


def test_to_float_is_exact_at_both_ends():
    converted = data.to_float(jnp.array([0, 51, 255], jnp.uint8))
    assert converted.dtype == jnp.float32
    np.testing.assert_allclose(converted, [0.0, 0.2, 1.0], rtol=1e-7)
    assert (converted[0], converted[2]) == (0.0, 1.0)
    np.testing.assert_array_equal(data.to_float(converted), converted)


def test_without_options_only_the_type_changes(images):
    plain = data.to_float(images)
    key = jax.random.key(0)
    np.testing.assert_array_equal(data.augment(key, images, Augmentation()), plain)
    np.testing.assert_array_equal(data.center_view(images, Augmentation(shift=3)), plain)


def test_flip_only_mirrors_and_does_both(images):
    flipped = data.augment(jax.random.key(1), images, Augmentation(flip=True))
    plain = data.to_float(images)
    same = jnp.all(flipped == plain, axis=(1, 2, 3))
    mirrored = jnp.all(flipped == plain[:, :, ::-1], axis=(1, 2, 3))
    assert bool(jnp.all(same != mirrored))
    assert 16 < int(jnp.sum(mirrored)) < 48


def offsets(views, image):
    """The crop offsets at which each view is found in the image."""
    height, width = views.shape[1:3]
    found = []
    for view in np.asarray(views):
        corners = itertools.product(range(image.shape[0] - height + 1), range(image.shape[1] - width + 1))
        (corner,) = [(y, x) for y, x in corners if np.array_equal(image[y : y + height, x : x + width], view)]
        found.append(corner)
    return found


def test_crops_reach_every_offset_and_no_other(images):
    same = jnp.broadcast_to(images[:1], (400, *images.shape[1:]))
    views = data.augment(jax.random.key(2), same, Augmentation(crop=9))
    found = Counter(offsets(views, np.asarray(data.to_float(images[0]))))
    assert set(found) == set(itertools.product(range(2), range(4)))
    assert min(found.values()) > 25


def test_shift_moves_zeros_in_by_at_most_its_size(images):
    same = jnp.broadcast_to(images[:1], (400, *images.shape[1:]))
    views = data.augment(jax.random.key(3), same, Augmentation(shift=2))
    padded = np.pad(np.asarray(data.to_float(images[0])), ((2, 2), (2, 2), (0, 0)))
    assert set(offsets(views, padded)) == set(itertools.product(range(5), range(5)))


def test_the_recipe_resizes_before_it_crops(images):
    recipe = Augmentation(resize=14, crop=11)
    assert data.output_shape(recipe, (10, 12, 3)) == (11, 11, 3)
    same = jnp.broadcast_to(images[:1], (64, *images.shape[1:]))
    views = data.augment(jax.random.key(4), same, recipe)
    resized = jax.image.resize(data.to_float(same), (64, 14, 14, 3), "bilinear")
    assert len(set(offsets(views, np.asarray(resized[0])))) > 10
    np.testing.assert_array_equal(data.center_view(same, recipe), resized[:, 1:12, 1:12])
    assert 0.0 <= float(views.min()) <= float(views.max()) <= 1.0


def test_a_random_resized_crop_shows_a_part_of_the_image():
    """Of ramps: their slopes are the sides of the crop, as shares of the image's."""
    height, width = 12, 16
    rows, columns = jnp.arange(height)[:, None] + jnp.zeros((1, width)), jnp.arange(width) + jnp.zeros((height, 1))
    ramps = jnp.broadcast_to(jnp.stack([rows, columns], axis=-1), (300, height, width, 2))
    views = np.asarray(data.augment(jax.random.key(3), ramps, Augmentation(min_area=0.25)))
    inner = views[:, 3:-3, 3:-3]  # at its border, an image goes on as its last row
    tall, wide = np.diff(inner[..., 0], axis=1), np.diff(inner[..., 1], axis=2)
    np.testing.assert_allclose(tall, tall[:, :1, :1] + 0 * tall, atol=1e-4)
    area = tall[:, 0, 0] * wide[:, 0, 0]
    assert 0.24 < area.min() < 0.3
    assert 0.9 < area.max() < 1.001
    aspect = tall[:, 0, 0] * height / (wide[:, 0, 0] * width)
    assert 0.74 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.34
    assert np.all((views >= 0) & (views <= np.array([height - 1, width - 1])))


def test_erasing_replaces_a_rectangle_by_noise():
    views = np.asarray(data.augment(jax.random.key(3), jnp.full((400, 20, 20, 1), 2.0), Augmentation(erase=0.25)))
    erased = views[..., 0] != 2.0
    assert 70 < erased.any((1, 2)).sum() < 130
    rows, columns = erased.any(2, keepdims=True), erased.any(1, keepdims=True)
    np.testing.assert_array_equal(erased, rows & columns)
    shares = erased.mean((1, 2))[erased.any((1, 2))]
    assert 0.01 < shares.min() < 0.06 < 0.25 < shares.max() < 0.4
    assert 0 <= views.min() < 0.1 < 0.9 < views[erased].max() < 1


def test_an_option_leaves_the_draws_of_the_others_as_they_are(images):
    shifted = data.augment(jax.random.key(5), images, Augmentation(shift=2, flip=True))
    erased = data.augment(jax.random.key(5), images, Augmentation(shift=2, flip=True, erase=0.5))
    same = jnp.all(shifted == erased, axis=(1, 2, 3))
    assert 16 < int(same.sum()) < 48
    assert float(jnp.mean(shifted == erased)) > 0.7


@pytest.mark.parametrize(
    "options",
    [
        Augmentation(14, 11, 1, True),
        Augmentation(shift=2),
        pytest.param(Augmentation(min_area=0.5, trivial=True, erase=0.5), marks=pytest.mark.slow),
    ],
)
def test_an_example_does_not_depend_on_how_the_batch_is_split(images, options):
    key = jax.random.key(5)
    compiled = jax.jit(data.augment, static_argnums=2)
    together = compiled(key, images, options)
    images, positions = np.asarray(images), np.arange(64)
    rounding = (
        1.2e-7 if options.resize else 1e-6 if options.min_area < 1 else 0
    )  # the draws are the same, XLA's matmul may differ by an ulp
    for parts in (4, 64):
        pieces = [
            compiled(key, piece, options, positions=where)
            for piece, where in zip(np.split(images, parts), np.split(positions, parts), strict=True)
        ]
        np.testing.assert_allclose(np.concatenate(pieces), together, rtol=0, atol=rounding)
    assert not np.array_equal(compiled(jax.random.key(6), images, options), together)


@pytest.mark.parametrize("options", [Augmentation(crop=11), Augmentation(resize=8, crop=9)])
def test_a_crop_larger_than_the_image_is_refused(options):
    with pytest.raises(ValueError, match="larger than the images"):
        data.output_shape(options, (10, 12, 3))
    with pytest.raises(ValueError, match="0 or more"):
        data.output_shape(Augmentation(shift=-1), (10, 12, 3))
