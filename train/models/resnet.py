"""Residual networks, in their CIFAR form: a 3x3 stem that keeps the size.

References:
    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; for the CIFAR stem section 4.2.
"""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from train.models.blocks import Conv, Normalization, Style, check_images, classify, rematerialized, scaled

STAGES = {"resnet-18": ((64, 2), (128, 2), (256, 2), (512, 2))}
"""Each stage: features and blocks; all but the first halve the map."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected by a 1x1 convolution where the shape changes."""

    features: int
    stride: int
    style: Style

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h_out w_out features"]:
        def normalized_conv(inputs: Array, size: int, stride: int) -> Array:
            conv = Conv(self.features, size, stride, False, self.style)
            return Normalization(self.style)(conv(inputs), train)

        residual = nn.relu(normalized_conv(images, 3, self.stride))
        residual = normalized_conv(residual, 3, 1)
        if images.shape != residual.shape:
            images = normalized_conv(images, 1, self.stride)
        return nn.relu(images + residual)


class ResNet(nn.Module):
    """A stem, stages of residual blocks, and a linear layer on the mean of the last."""

    architecture: str
    num_classes: int
    width: float = 1.0
    style: Style = Style()
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n num_classes"]:
        check_images(images)
        stages = STAGES[self.architecture]
        stem = Conv(scaled(stages[0][0], self.width), use_bias=False, style=self.style, name="stem")
        norm = Normalization(self.style, name="stem_norm")
        features = nn.relu(norm(stem(images.astype(self.style.dtype)), train))
        block_class = rematerialized(ResidualBlock, self.remat)
        for index, (count, num_blocks) in enumerate(stages):
            for block in range(num_blocks):
                stride = 2 if index > 0 and block == 0 else 1
                name = f"stage_{index}_block_{block}"
                features = block_class(scaled(count, self.width), stride, self.style, name=name)(features, train)
        return classify(features, self.num_classes, self.style.dtype)
