"""Presets: their names, and that their parts fit together."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from train import Config
from train.data.augmentation import output_shape
from train.data.source import Source
from train.methods.standard import Standard
from train.presets import GROUPS, PRESETS, table
from train.task import build

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet2012": 1000}


def test_the_table_names_every_preset_once_below_its_data():
    lines = table().splitlines()
    assert [line.split()[0] for line in lines if line.startswith("    ")] == list(PRESETS)
    assert [line for line in lines if line and not line.startswith(" ")] == [group.title for group in GROUPS]
    assert len(PRESETS) == sum(len(group.presets) for group in GROUPS)


def test_the_two_releases_have_their_weights():
    weights = {name: round(PRESETS[f"cifar10-{name}"].config.method.weight, 2) for name in NAMES}
    assert weights == {"resnet20-flow-2021": 1.1, "vgg13-flow-2021": 1.1, "vgg11-flow-2022": 4.4}


def test_the_vision_transformer_leaves_norms_and_biases_undecayed():
    """As Beyer et al. do: only kernels decay."""
    recipes = [preset.config.optimizer for name, preset in PRESETS.items() if name.startswith("imagenet-vit-s16")]
    assert recipes
    assert not any(recipe.decay_all for recipe in recipes)


NAMES = ("resnet20-flow-2021", "vgg13-flow-2021", "vgg11-flow-2022")


@pytest.mark.slow
def test_networks_take_the_images_of_their_data():
    """Each network once, traced and not run."""
    built: set[Config] = set()
    for name, preset in PRESETS.items():
        config = replace(preset.config, method=Standard())
        if config in built or name.startswith(("digits", "mnist")):
            continue
        built.add(config)
        size = config.data.image_size or 32
        names = tuple(map(str, range(CLASSES.get(config.data.name, 5))))
        source = Source(name, 100, (size, size, 3), names, np.take, np.take, in_memory=True)
        network = build(config, source, steps_per_epoch=50)
        assert output_shape(config.augmentation, source.image_shape) == source.image_shape
        assert sum(leaf.size for leaf in jax.tree.leaves(network.shapes.params)) > 1000
    assert len(built) > 10
