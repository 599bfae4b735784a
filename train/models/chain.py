"""Chains of convolutions, in their CIFAR form: a small CNN, and VGG-11 to VGG-19.

References:
    Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, table 1
    (configurations A, B, D, E; here with normalization, and one linear layer instead of three).
"""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from train.models import layers
from train.models.blocks import (
    Conv,
    Family,
    Normalization,
    Style,
    check_images,
    classify,
    rematerialized,
    scaled,
    training_keys,
)

Architecture = tuple[tuple[int, int], ...]
"""Features and convolutions of each stage, which ends with a halving of the map."""


class ConvStage(nn.Module):
    """Convolutions, each normalized and activated, then a 2x2 max pooling."""

    features: int
    num_convs: int
    style: Style

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h//2 w//2 features"]:
        for _ in range(self.num_convs):
            images = Conv(self.features, style=self.style)(images)
            images = self.style.activate(Normalization(self.style)(images, train))
        return layers.max_pool_2x2(images, implementation=self.style.implementation)


class Chain(nn.Module):
    """Stages of convolutions, each halving the map, and a linear layer on the mean of the last."""

    architecture: Architecture
    num_classes: int
    width: float = 1.0
    style: Style = Style()
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False, keys: Array | None = None
    ) -> Float[Array, "n num_classes"]:
        check_images(images)
        keys = training_keys(keys, self.style, train)
        halvings = len(self.architecture)
        smallest = 2**halvings
        if min(images.shape[1:3]) < smallest:
            raise ValueError(
                f"images must be at least {smallest}x{smallest} for a network that halves them {halvings} times, "
                f"got shape {images.shape}"
            )
        stage_class = rematerialized(ConvStage, self.remat)
        features = images.astype(self.style.dtype)
        for index, (count, num_convs) in enumerate(self.architecture):
            stage = stage_class(scaled(count, self.width), num_convs, self.style, name=f"stage_{index}")
            features = stage(features, train)
        return classify(features, self.num_classes, self.style, keys)


FAMILY = Family(
    Chain,
    {
        "small-cnn": ((32, 1), (64, 2), (128, 1)),
        "vgg-11": ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2)),
        "vgg-13": ((64, 2), (128, 2), (256, 2), (512, 2), (512, 2)),
        "vgg-16": ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
        "vgg-19": ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)),
    },
    residual=False,
)
