"""ConvNeXt: depthwise convolutions between linear layers, with layer norm.

References:
    Liu et al., "A ConvNet for the 2020s", CVPR 2022, table 9.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.models import layers
from train.models.blocks import (
    Family,
    Mlp,
    Style,
    check_images,
    classify,
    drop,
    layer_keys,
    layer_norm,
    linear,
    rematerialized,
    scaled,
    training_keys,
)

Architecture = tuple[tuple[int, int], ...]
"""Features and blocks of each stage; the first shrinks images to a quarter, the others to a half."""


class ConvNextBlock(nn.Module):
    """A depthwise 7x7 convolution, layer norm, and two linear layers, scaled and added to the images."""

    style: Style
    drop_rate: float = 0.0

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool, keys: Array | None = None
    ) -> Float[Array, "n h w c"]:
        count, dtype = images.shape[-1], self.style.dtype
        kernel = self.param("kernel", nn.initializers.truncated_normal(0.02), (7, 7, count), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (count,), jnp.float32)
        scale = self.param("scale", nn.initializers.constant(1e-6), (count,), jnp.float32)
        branch = layers.depthwise_conv(images, kernel.astype(dtype))
        branch = layer_norm(self.style, "norm")(branch + bias.astype(dtype))
        branch = scale.astype(dtype) * Mlp(self.style, name="mlp")(branch)
        return images + drop(branch, keys, self.drop_rate, whole=True)


class ConvNext(nn.Module):
    """Stages of blocks, each after a linear layer on patches, and a linear layer on the mean of the last."""

    architecture: Architecture
    num_classes: int
    width: float = 1.0
    style: Style = Style(norm="layer", activation="gelu")
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False, keys: Array | None = None
    ) -> Float[Array, "n num_classes"]:
        check_images(images)
        keys = training_keys(keys, self.style, train)
        smallest = 2 ** (1 + len(self.architecture))
        if min(images.shape[1:3]) < smallest:
            raise ValueError(f"images must be at least {smallest}x{smallest} for a ConvNeXt, got shape {images.shape}")
        block_class = rematerialized(ConvNextBlock, self.remat)
        rates = iter(self.style.depth_rates(sum(count for _, count in self.architecture)))
        features, index = images.astype(self.style.dtype), 0
        for stage, (count, num_blocks) in enumerate(self.architecture):
            if stage > 0:
                features = layer_norm(self.style, f"stage_{stage}_norm")(features)
            shrink = linear(scaled(count, self.width), self.style, f"stage_{stage}_patches")
            features = shrink(layers.patches(features, 2 if stage > 0 else 4))
            if stage == 0:
                features = layer_norm(self.style, "stage_0_norm")(features)
            for block in range(num_blocks):
                module = block_class(self.style, next(rates), name=f"stage_{stage}_block_{block}")
                features = module(features, train, layer_keys(keys, index))
                index += 1
        return classify(features, self.num_classes, self.style, keys, normalized=True)


FAMILY = Family(
    ConvNext,
    {
        "convnext-t": ((96, 3), (192, 3), (384, 9), (768, 3)),
        "convnext-s": ((96, 3), (192, 3), (384, 27), (768, 3)),
    },
    norms=("layer",),
    activation="gelu",
)
