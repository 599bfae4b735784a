"""Vision transformers, with a linear or a convolutional stem.

Attention is two products of matrices and a softmax, whose second derivatives XLA compiles for every backend; fused
attention kernels have none.

References:
    Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, table 1.
    Touvron et al., "Training Data-Efficient Image Transformers", ICML 2021, table 1 (the tiny and the small one).
    Xiao et al., "Early Convolutions Help Transformers See Better", NeurIPS 2021; here with layer norm, as in Singh,
    Croce and Hein, "Revisiting Adversarial Training for ImageNet", NeurIPS 2023.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.models import layers
from train.models.blocks import (
    Conv,
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


class Architecture(NamedTuple):
    """A vision transformer.

    Attributes:
        heads: of the attention, with 64 features each.
        patch: height and width, in pixels, that a token stands for; a power of two.
        stem: features of the last convolution of a convolutional stem; 0 for a linear stem.
        depth: number of blocks.
    """

    heads: int
    patch: int
    stem: int = 0
    depth: int = 12


class Attention(nn.Module):
    """Multi-head self-attention."""

    heads: int
    style: Style

    @nn.compact
    def __call__(self, tokens: Float[Array, "n t c"]) -> Float[Array, "n t c"]:
        n, t, c = tokens.shape
        joint = linear(3 * c, self.style, "joint")(tokens).reshape(n, t, 3, self.heads, c // self.heads)
        query, key, value = joint[:, :, 0], joint[:, :, 1], joint[:, :, 2]
        scores = jnp.einsum("nqhc,nkhc->nhqk", query / math.sqrt(c // self.heads), key)
        # In a narrow dtype, the sum over many tokens would lose its small terms.
        wide = jnp.promote_types(self.style.dtype, jnp.float32)
        weights = nn.softmax(scores.astype(wide)).astype(self.style.dtype)
        mixed = jnp.einsum("nhqk,nkhc->nqhc", weights, value).reshape(n, t, c)
        outputs: Array = linear(c, self.style, "out")(mixed)
        return outputs


class TransformerBlock(nn.Module):
    """Attention, then two linear layers on every token, each normalized before and added to its input."""

    heads: int
    style: Style
    drop_rate: float = 0.0

    @nn.compact
    def __call__(self, tokens: Float[Array, "n t c"], train: bool, keys: Array | None = None) -> Float[Array, "n t c"]:
        branch = Attention(self.heads, self.style, name="attention")(layer_norm(self.style, "norm_0")(tokens))
        tokens = tokens + drop(branch, layer_keys(keys, 0), self.drop_rate, whole=True)
        branch = Mlp(self.style, name="mlp")(layer_norm(self.style, "norm_1")(tokens))
        return tokens + drop(branch, layer_keys(keys, 1), self.drop_rate, whole=True)


class VisionTransformer(nn.Module):
    """A stem that makes tokens, a class token, positions, blocks, and a linear layer on the class token."""

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
        heads, patch, _, depth = self.architecture
        if images.shape[1] % patch or images.shape[2] % patch:
            raise ValueError(f"height and width must be multiples of {patch} for these patches, got {images.shape}")
        tokens = self.embed(images.astype(self.style.dtype), heads * scaled(64, self.width))
        block_class = rematerialized(TransformerBlock, self.remat)
        for index, rate in enumerate(self.style.depth_rates(depth)):
            block = block_class(heads, self.style, rate, name=f"block_{index}")
            tokens = block(tokens, train, layer_keys(keys, index))
        # Only the first token is used, and layer norm treats every token alone.
        return classify(tokens[:, :1], self.num_classes, self.style, keys, normalized=True)

    def embed(self, images: Array, count: int) -> Array:
        """The tokens of images, with their positions; the first is the class token."""
        patch = self.architecture.patch
        if self.architecture.stem:
            halvings = int(math.log2(patch))
            for index in range(halvings):
                features = scaled(self.architecture.stem // 2 ** (halvings - 1 - index), self.width)
                images = Conv(features, stride=2, style=self.style, name=f"stem_{index}")(images)
                images = self.style.activate(layer_norm(self.style, f"stem_{index}_norm")(images))
            maps = linear(count, self.style, "patches")(images)
        else:
            maps = linear(count, self.style, "patches")(layers.patches(images, patch))
        n, rows, columns = maps.shape[:3]
        tokens = maps.reshape(n, rows * columns, count)
        small = nn.initializers.truncated_normal(0.02)
        first = self.param("class_token", small, (1, 1, count), jnp.float32).astype(self.style.dtype)
        positions = self.param("positions", small, (1, 1 + tokens.shape[1], count), jnp.float32)
        tokens = jnp.concatenate([jnp.broadcast_to(first, (n, 1, count)), tokens], axis=1)
        return tokens + positions.astype(self.style.dtype)


_HEADS = {"ti": 3, "s": 6, "b": 12}
_STEMS = {"ti": 192, "s": 384, "b": 384}

FAMILY = Family(
    VisionTransformer,
    {
        **{f"vit-{size}-{patch}": Architecture(heads, patch) for size, heads in _HEADS.items() for patch in (16, 4)},
        **{
            f"vit-{size}-conv-{patch}": Architecture(heads, patch, _STEMS[size])
            for size, heads in _HEADS.items()
            for patch in (16, 4)
        },
    },
    norms=("layer",),
    activation="gelu",
)
