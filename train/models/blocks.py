"""What the networks are built of: convolution, normalization, and the head that they share.

Convolution and pooling choose between two formulations, so that the exact gradient penalty is fast on a CPU too
(`train.models.layers`); otherwise the layers are Flax's. Parameters, normalization statistics and logits are float32
whatever the compute dtype.

References:
    He et al., "Delving Deep into Rectifiers", ICCV 2015 (initialization).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from train.models import layers

Norm = Literal["batch", "group"]

_HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclass(frozen=True)
class Style:
    """How the layers of a network are made.

    Attributes:
        norm: the normalization layer.
        dtype: of the arithmetic.
        axis_name: the mapped axis over which batch normalization takes its statistics; None for none.
        implementation: of convolution and pooling, see `train.models.layers`.
    """

    norm: Norm = "batch"
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    implementation: layers.Implementation = "auto"


class Conv(nn.Module):
    """A convolution that keeps the size (for stride 1), by either formulation of `train.models.layers`."""

    features: int
    size: int = 3
    stride: int = 1
    use_bias: bool = True
    style: Style = Style()

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n h_out w_out features"]:
        shape = (self.size, self.size, images.shape[-1], self.features)
        kernel = self.param("kernel", _HE_NORMAL, shape, jnp.float32).astype(self.style.dtype)
        outputs = layers.conv(
            images.astype(self.style.dtype), kernel, stride=self.stride, implementation=self.style.implementation
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            outputs += bias.astype(self.style.dtype)
        return outputs


class Normalization(nn.Module):
    """Batch norm with PyTorch's constants, or group norm over 16 channels (8 where 16 do not divide).

    The running variance is the biased one, as everywhere in Flax; PyTorch's is n/(n-1) times that.
    """

    style: Style = Style()

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w c"]:
        if self.style.norm == "group":
            group_size = math.gcd(16, images.shape[-1])
            layer: nn.Module = nn.GroupNorm(None, group_size, epsilon=1e-5, dtype=self.style.dtype, name="group")
        else:
            layer = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype=self.style.dtype,
                axis_name=self.style.axis_name,
                name="batch",
            )
        normalized: Array = layer(images)
        return normalized


def check_images(images: Array) -> None:
    """Raises `ValueError` unless images are ``float[n, h, w, c]``."""
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be float[n, h, w, c], got {images.dtype}{list(images.shape)}")


def scaled(features: int, width: float) -> int:
    """A channel count times the width, rounded to a multiple of 8, at least 8."""
    return max(8, 8 * round(width * features / 8))


def rematerialized(module: Any, remat: bool) -> Any:
    """A module class called as ``(images, train)``, its activations recomputed in the backward pass where asked for.

    Name its instances: the parameter tree is then the same with and without.
    """
    # For accelerators only: XLA for CPUs merges what is computed twice, and the peak of memory lies inside a stage.
    return nn.remat(module, static_argnums=(2,)) if remat else module


def classify(features: Array, num_classes: int, dtype: DTypeLike) -> Array:
    """The mean over the map, and one linear layer; call it inside a module's compact method."""
    # The head is cheap; in a narrow dtype its rounding would be the loss's.
    wide = jnp.promote_types(dtype, jnp.float32)
    pooled = features.astype(wide).mean(axis=(1, 2))
    logits: Array = nn.Dense(num_classes, dtype=wide, kernel_init=nn.initializers.normal(0.01), name="head")(pooled)
    return logits
