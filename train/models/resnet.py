"""Residual networks: ResNet, pre-activation ResNet and Wide ResNet, with a stem for small or for large images.

References:
    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; for the CIFAR networks section 4.2.
        Bottlenecks have their stride in the 3x3 convolution, as in the common implementations, not in the first.
    He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016 (pre-activation).
    Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, table 1.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.models import layers
from train.models.blocks import (
    Conv,
    Family,
    Normalization,
    Style,
    check_images,
    classify,
    drop,
    layer_keys,
    rematerialized,
    scaled,
    training_keys,
)


class _Block(nn.Module):
    """Options that all residual blocks have.

    Attributes:
        features: of the block's convolutions.
        stride: of the block.
        style: of its layers.
        drop_rate: probability with which the residual branch is dropped in training.
    """

    features: int
    stride: int
    style: Style
    drop_rate: float = 0.0

    def conv(self, images: Array, size: int = 3, stride: int = 1, factor: int = 1) -> Array:
        outputs: Array = Conv(factor * self.features, size, stride, False, self.style)(images)
        return outputs

    def normalize(self, images: Array, train: bool) -> Array:
        normalized: Array = Normalization(self.style)(images, train)
        return normalized


class BasicBlock(_Block):
    """Two 3x3 convolutions and a shortcut, projected by a 1x1 convolution where the shape changes."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool, keys: Array | None = None
    ) -> Float[Array, "n h_out w_out features"]:
        residual = self.style.activate(self.normalize(self.conv(images, stride=self.stride), train))
        residual = self.normalize(self.conv(residual), train)
        shortcut = images if images.shape == residual.shape else self.shortcut(images, train)
        return self.style.activate(shortcut + drop(residual, keys, self.drop_rate, whole=True))

    def shortcut(self, images: Array, train: bool) -> Array:
        return self.normalize(self.conv(images, 1, self.stride), train)


class PaddedBlock(BasicBlock):
    """A basic block whose shortcut has no parameters: every other pixel, and zeros in new channels (option A)."""

    def shortcut(self, images: Array, train: bool) -> Array:
        new = self.features - images.shape[-1]
        strided = images[:, :: self.stride, :: self.stride]
        return jnp.pad(strided, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))


class BottleneckBlock(_Block):
    """A 1x1, a 3x3 and a 1x1 convolution with four times the features, and a shortcut, projected where it must be."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool, keys: Array | None = None
    ) -> Float[Array, "n h_out w_out 4*features"]:
        residual = self.style.activate(self.normalize(self.conv(images, 1), train))
        residual = self.style.activate(self.normalize(self.conv(residual, stride=self.stride), train))
        residual = self.normalize(self.conv(residual, 1, factor=4), train)
        if images.shape != residual.shape:
            images = self.normalize(self.conv(images, 1, self.stride, factor=4), train)
        return self.style.activate(images + drop(residual, keys, self.drop_rate, whole=True))


class PreactivatedBlock(_Block):
    """Normalization and activation before each of two 3x3 convolutions; the sum is not activated."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool, keys: Array | None = None
    ) -> Float[Array, "n h_out w_out features"]:
        activated = self.style.activate(self.normalize(images, train))
        residual = self.conv(activated, stride=self.stride)
        residual = self.conv(self.style.activate(self.normalize(residual, train)))
        shortcut = images if images.shape == residual.shape else self.conv(activated, 1, self.stride)
        return shortcut + drop(residual, keys, self.drop_rate, whole=True)


class Architecture(NamedTuple):
    """A residual network.

    Attributes:
        stages: features and blocks of each; all but the first halve the map.
        block: what they are built of.
        stem: features of the stem.
        for_large_images: whether the stem is a 7x7 convolution and a pooling that shrink images to a quarter, instead
            of a 3x3 convolution that keeps their size.
    """

    stages: tuple[tuple[int, int], ...]
    block: type[_Block] = BasicBlock
    stem: int = 64
    for_large_images: bool = False


def _cifar(num_blocks: int) -> Architecture:
    return Architecture(tuple((features, num_blocks) for features in (16, 32, 64)), PaddedBlock, 16)


def _wide(num_blocks: int, factor: int) -> Architecture:
    return Architecture(tuple((features * factor, num_blocks) for features in (16, 32, 64)), PreactivatedBlock, 16)


class ResNet(nn.Module):
    """A stem, stages of residual blocks, and a linear layer on the mean of the last."""

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
        stages, block_class, stem, is_large = self.architecture
        preactivated = issubclass(block_class, PreactivatedBlock)
        size, stride = (7, 2) if is_large else (3, 1)
        first = Conv(scaled(stem, self.width), size, stride, False, self.style, name="stem")
        features = first(images.astype(self.style.dtype))
        if not preactivated:
            features = self.style.activate(Normalization(self.style, name="stem_norm")(features, train))
        if is_large:
            features = layers.max_pool_3x3(features, implementation=self.style.implementation)
        block_class = rematerialized(block_class, self.remat)
        blocks = [(stage, block) for stage, (_, count) in enumerate(stages) for block in range(count)]
        for index, ((stage, block), rate) in enumerate(zip(blocks, self.style.depth_rates(len(blocks)), strict=True)):
            stride = 2 if stage > 0 and block == 0 else 1
            name = f"stage_{stage}_block_{block}"
            module = block_class(scaled(stages[stage][0], self.width), stride, self.style, rate, name=name)
            features = module(features, train, layer_keys(keys, index))
        if preactivated:
            features = self.style.activate(Normalization(self.style, name="last_norm")(features, train))
        return classify(features, self.num_classes, self.style, keys)


_EIGHTEEN = ((64, 2), (128, 2), (256, 2), (512, 2))
_THIRTY_FOUR = ((64, 3), (128, 4), (256, 6), (512, 3))

FAMILY = Family(
    ResNet,
    {
        "resnet-18": Architecture(_EIGHTEEN),
        "resnet-34": Architecture(_THIRTY_FOUR),
        "resnet-18-imagenet": Architecture(_EIGHTEEN, for_large_images=True),
        "resnet-34-imagenet": Architecture(_THIRTY_FOUR, for_large_images=True),
        "resnet-50": Architecture(_THIRTY_FOUR, BottleneckBlock, for_large_images=True),
        "resnet-20": _cifar(3),
        "resnet-32": _cifar(5),
        "resnet-56": _cifar(9),
        "preact-resnet-18": Architecture(_EIGHTEEN, PreactivatedBlock),
        "wide-resnet-28-10": _wide(4, 10),
        "wide-resnet-34-10": _wide(5, 10),
    },
)
