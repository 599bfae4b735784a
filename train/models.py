"""Image classifiers for the trainer, in Flax Linen: a small CNN, VGG-11 to VGG-19 and ResNet-18, in their CIFAR form.

They differ from Flax's own layers in one thing only: convolution and pooling choose between two formulations, so that
the exact gradient penalty is fast on a CPU too (`train.layers`). Parameters, normalization statistics and logits are
float32 whatever the compute dtype.

With ``norm="batch"`` a model keeps running statistics in the ``batch_stats`` collection; with ``norm="group"`` it has
no such collection, and an example's logits do not depend on the rest of the batch.

Example:
    >>> import jax, jax.numpy as jnp
    >>> model = create_model("vgg-11", num_classes=10, width=0.125)
    >>> images = jnp.zeros((2, 32, 32, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
    >>> logits.shape
    (2, 10)

References:
    Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, table 1
    (configurations A, B, D, E; here with normalization, and one linear layer instead of three).
    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; for the CIFAR stem section 4.2.
    He et al., "Delving Deep into Rectifiers", ICCV 2015 (initialization).
"""

from __future__ import annotations

import difflib
import math
from typing import Any, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from train import layers

Norm = Literal["batch", "group"]

# Each stage: (features, convolutions), then a halving of the map; for the ResNet (features, blocks).
_CHAINS = {
    "small-cnn": ((32, 1), (64, 2), (128, 1)),
    "vgg-11": ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2)),
    "vgg-13": ((64, 2), (128, 2), (256, 2), (512, 2), (512, 2)),
    "vgg-16": ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    "vgg-19": ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)),
}
_RESNETS = {"resnet-18": ((64, 2), (128, 2), (256, 2), (512, 2))}
MODEL_NAMES = (*_CHAINS, *_RESNETS)

_HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """A convolution that keeps the size (for stride 1), by either formulation of `train.layers`."""

    features: int
    size: int = 3
    stride: int = 1
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    implementation: layers.Implementation = "auto"

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n h_out w_out features"]:
        shape = (self.size, self.size, images.shape[-1], self.features)
        kernel = self.param("kernel", _HE_NORMAL, shape, jnp.float32).astype(self.dtype)
        outputs = layers.conv(images.astype(self.dtype), kernel, stride=self.stride, implementation=self.implementation)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            outputs += bias.astype(self.dtype)
        return outputs


class Normalization(nn.Module):
    """Batch norm with PyTorch's constants, or group norm over 16 channels (8 where 16 do not divide).

    The running variance is the biased one, as everywhere in Flax; PyTorch's is n/(n-1) times that.
    """

    norm: Norm = "batch"
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w c"]:
        if self.norm == "group":
            group_size = math.gcd(16, images.shape[-1])
            layer: nn.Module = nn.GroupNorm(None, group_size, epsilon=1e-5, dtype=self.dtype, name="group")
        else:
            layer = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name="batch",
            )
        normalized: Array = layer(images)
        return normalized


class ConvStage(nn.Module):
    """Convolutions, each normalized and rectified, then a 2x2 max pooling."""

    features: int
    num_convs: int
    norm: Norm
    dtype: DTypeLike
    axis_name: str | None
    implementation: layers.Implementation

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h//2 w//2 features"]:
        for _ in range(self.num_convs):
            images = Conv(self.features, dtype=self.dtype, implementation=self.implementation)(images)
            images = nn.relu(Normalization(self.norm, self.dtype, self.axis_name)(images, train))
        return layers.max_pool_2x2(images, implementation=self.implementation)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected by a 1x1 convolution where the shape changes."""

    features: int
    stride: int
    norm: Norm
    dtype: DTypeLike
    axis_name: str | None
    implementation: layers.Implementation

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h_out w_out features"]:
        def normalized_conv(inputs: Array, size: int, stride: int) -> Array:
            conv = Conv(self.features, size, stride, False, self.dtype, self.implementation)
            return Normalization(self.norm, self.dtype, self.axis_name)(conv(inputs), train)

        residual = nn.relu(normalized_conv(images, 3, self.stride))
        residual = normalized_conv(residual, 3, 1)
        if images.shape != residual.shape:
            images = normalized_conv(images, 1, self.stride)
        return nn.relu(images + residual)


class Classifier(nn.Module):
    """What all models share: a body of stages, the mean over the map, and one linear layer in float32.

    Calling it as ``model.apply(variables, images, train=True, mutable=["batch_stats"])`` normalizes by the batch's
    statistics and returns ``(logits, updates)``; with ``train=False`` by the running ones, and returns the logits.
    """

    architecture: str
    num_classes: int
    width: float = 1.0
    norm: Norm = "batch"
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    implementation: layers.Implementation = "auto"
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n num_classes"]:
        if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images must be float[n, h, w, c], got {images.dtype}{list(images.shape)}")
        body = self._resnet if self.architecture in _RESNETS else self._chain
        features = body(images.astype(self.dtype), train)
        # The head is cheap; in a narrow dtype its rounding would be the loss's.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        pooled = features.astype(wide).mean(axis=(1, 2))
        head = nn.Dense(self.num_classes, dtype=wide, kernel_init=nn.initializers.normal(0.01), name="head")
        return head(pooled)

    def _chain(self, images: Array, train: bool) -> Array:
        stages = _CHAINS[self.architecture]
        smallest = 2 ** len(stages)
        if min(images.shape[1:3]) < smallest:
            raise ValueError(
                f"images must be at least {smallest}x{smallest} for {self.architecture}, which halves them "
                f"{len(stages)} times, got shape {images.shape}"
            )
        stage_class = self._rematerialized(ConvStage)
        for index, (features, num_convs) in enumerate(stages):
            images = stage_class(self._scaled(features), num_convs, **self._shared(), name=f"stage_{index}")(
                images, train
            )
        return images

    def _resnet(self, images: Array, train: bool) -> Array:
        stages = _RESNETS[self.architecture]
        stem = Conv(
            self._scaled(stages[0][0]),
            use_bias=False,
            dtype=self.dtype,
            implementation=self.implementation,
            name="stem",
        )
        norm = Normalization(self.norm, self.dtype, self.axis_name, name="stem_norm")
        images = nn.relu(norm(stem(images), train))
        block_class = self._rematerialized(ResidualBlock)
        for index, (features, num_blocks) in enumerate(stages):
            for block in range(num_blocks):
                stride = 2 if index > 0 and block == 0 else 1
                name = f"stage_{index}_block_{block}"
                images = block_class(self._scaled(features), stride, **self._shared(), name=name)(images, train)
        return images

    def _scaled(self, features: int) -> int:
        return max(8, 8 * round(self.width * features / 8))

    def _shared(self) -> dict[str, Any]:
        return {
            "norm": self.norm,
            "dtype": self.dtype,
            "axis_name": self.axis_name,
            "implementation": self.implementation,
        }

    def _rematerialized(self, module_class: Any) -> Any:
        # Explicit names below keep the parameter tree the same with and without.
        return nn.remat(module_class, static_argnums=(2,)) if self.remat else module_class


def create_model(
    name: str,
    *,
    num_classes: int,
    width: float = 1.0,
    norm: Norm = "batch",
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
    implementation: layers.Implementation = "auto",
    remat: bool = False,
) -> nn.Module:
    """Returns the model of that name; `MODEL_NAMES` lists them.

    The VGGs need images of at least 32x32 pixels, ``"small-cnn"`` 8x8; any channel count.

    Args:
        name: One of `MODEL_NAMES`.
        num_classes: Number of logits.
        width: Factor on all channel counts, which are rounded to a multiple of 8, at least 8.
        norm: ``"batch"`` or ``"group"``.
        dtype: Compute dtype, for example bfloat16; parameters, statistics and logits stay float32.
        axis_name: With batch norm, the ``pmap`` axis over which to synchronize the statistics. Sharded ``jit``
            needs none: there the batch is one array.
        implementation: ``"lax"``, ``"matmul"``, or ``"auto"``: matmul on a CPU, lax elsewhere, decided when traced.
            To compile on a CPU host for another device, name it.
        remat: Recompute each stage in the backward pass instead of storing its activations.

    Returns:
        A Linen module called as ``model.apply(variables, images, train=...)``.

    Raises:
        ValueError: an argument is not among the values it may have.
    """
    _check_choice("name", name, MODEL_NAMES)
    _check_choice("norm", norm, get_args(Norm))
    _check_choice("implementation", implementation, get_args(layers.Implementation))
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if not 0 < width < math.inf:
        raise ValueError(f"width must be positive and finite, got {width}")
    return Classifier(name, num_classes, width, norm, dtype, axis_name, implementation, remat)


def _check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value in choices:
        return
    nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f": did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"{argument} must be one of {', '.join(choices)}, got {value!r}{hint}")
