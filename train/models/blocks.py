"""What the networks are built of: convolution, normalization, activation, and the head that they share.

Convolution and pooling choose between two formulations, so that the exact gradient penalty is fast on a CPU too
(`train.models.layers`); otherwise the layers are Flax's. Parameters, normalization statistics and logits are float32
whatever the compute dtype.

References:
    He et al., "Delving Deep into Rectifiers", ICCV 2015 (initialization).
    Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from train.models import layers

Norm = Literal["batch", "group", "layer"]
Activation = Literal["relu", "gelu", "silu", "softplus"]

ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "gelu": partial(nn.gelu, approximate=False),  # PyTorch's default; Flax's is the tanh approximation
    "silu": nn.silu,
    "softplus": nn.softplus,
}

_HEAD = 2**32 - 1
"""The number of the head among the layers that draw random numbers; blocks count from 0."""

_SMALL = nn.initializers.truncated_normal(0.02)
_HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclass(frozen=True)
class Style:
    """How the layers of a network are made.

    Attributes:
        norm: the normalization layer.
        activation: the nonlinearity.
        dtype: of the arithmetic.
        axis_name: the mapped axis over which batch normalization takes its statistics; None for none.
        implementation: of convolution and pooling, see `train.models.layers`.
        dropout: probability with which a feature before the last linear layer is dropped in training.
        stochastic_depth: probability with which the last residual branch is dropped in training. The probability grows
            linearly from 0 at the first branch.
    """

    norm: Norm = "batch"
    activation: Activation = "relu"
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    implementation: layers.Implementation = "auto"
    dropout: float = 0.0
    stochastic_depth: float = 0.0

    def activate(self, features: Array) -> Array:
        """The activation of an array."""
        return ACTIVATIONS[self.activation](features)

    def depth_rates(self, count: int) -> list[float]:
        """The probability with which each of `count` residual branches is dropped."""
        return [self.stochastic_depth * index / max(1, count - 1) for index in range(count)]


class Family(NamedTuple):
    """Networks that one module builds.

    Attributes:
        module: called as ``module(architecture, num_classes, width, style, remat)``.
        architectures: by the names that the command line gives them.
        norms: the normalization layers that the networks can have, their own first.
        activation: their own.
        residual: whether they have branches that stochastic depth can drop.
    """

    module: Callable[..., nn.Module]
    architectures: Mapping[str, Any]
    norms: tuple[Norm, ...] = ("batch", "group")
    activation: Activation = "relu"
    residual: bool = True


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


def linear(features: int, style: Style, name: str) -> nn.Module:
    """A linear layer on the last axis, initialized as those of transformers; call it inside a compact method."""
    return nn.Dense(features, dtype=style.dtype, kernel_init=_SMALL, name=name)


def layer_norm(style: Style, name: str) -> nn.Module:
    """Layer norm over the last axis, with the constant of vision transformers; call it inside a compact method."""
    return nn.LayerNorm(epsilon=1e-6, dtype=style.dtype, use_fast_variance=False, name=name)


class Mlp(nn.Module):
    """Two linear layers with an activation between; the inner one is four times as wide."""

    style: Style = Style()

    @nn.compact
    def __call__(self, inputs: Float[Array, "*axes c"]) -> Float[Array, "*axes c"]:
        count = inputs.shape[-1]
        hidden = self.style.activate(linear(4 * count, self.style, "first")(inputs))
        outputs: Array = linear(count, self.style, "second")(hidden)
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
    """A module class called as ``(images, train, ...)``, its activations recomputed in the backward pass if asked for.

    Name its instances: the parameter tree is then the same with and without.
    """
    # For accelerators only: XLA for CPUs merges what is computed twice, and the peak of memory lies inside a stage.
    return nn.remat(module, static_argnums=(2,)) if remat else module


def layer_keys(keys: Array | None, layer: int) -> Array | None:
    """The keys of one of several layers, each of which draws its own random numbers."""
    return None if keys is None else jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, layer)


def drop(
    values: Float[Array, "n ..."], keys: Array | None, rate: float, *, whole: bool = False
) -> Float[Array, "n ..."]:
    """Sets values to zero at random and scales the others, so that the mean stays the same.

    Every example draws from its own key, so that a batch does not depend on how it is divided over devices.

    Args:
        values: of a batch.
        keys: one per example; None drops nothing.
        rate: probability with which a value is dropped.
        whole: whether the values of an example are dropped together: stochastic depth.
    """
    if not rate or keys is None:
        return values
    shape = (1,) * (values.ndim - 1) if whole else values.shape[1:]
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys)
    return jnp.where(kept, values / (1 - rate), 0).astype(values.dtype)


def training_keys(keys: Array | None, style: Style, train: bool) -> Array | None:
    """The keys that dropout and stochastic depth draw from: None where they are off.

    Raises:
        ValueError: they are on, but there are no keys.
    """
    if not train or not (style.dropout or style.stochastic_depth):
        return None
    if keys is None:
        raise ValueError("dropout and stochastic depth need keys=..., one random key per example")
    return keys


def classify(
    features: Array, num_classes: int, style: Style, keys: Array | None = None, *, normalized: bool = False
) -> Array:
    """The mean over all but the first and the last axis, layer norm if `normalized`, and one linear layer.

    Call it inside a module's compact method.
    """
    # The head is cheap; in a narrow dtype its rounding would be the loss's.
    wide = jnp.promote_types(style.dtype, jnp.float32)
    pooled = features.astype(wide).mean(axis=tuple(range(1, features.ndim - 1)))
    if normalized:
        pooled = layer_norm(replace(style, dtype=wide), "last_norm")(pooled)
    pooled = drop(pooled, layer_keys(keys, _HEAD), style.dropout)
    logits: Array = nn.Dense(num_classes, dtype=wide, kernel_init=nn.initializers.normal(0.01), name="head")(pooled)
    return logits
