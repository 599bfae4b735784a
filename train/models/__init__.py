"""Image classifiers in Flax Linen: one file a family, one value a network.

With batch normalization a network keeps running statistics in the ``batch_stats`` collection; with group normalization
it has no such collection, and an example's logits do not depend on the rest of the batch.

Example:
    >>> import jax, jax.numpy as jnp
    >>> model = create_model("vgg-11", num_classes=10, width=0.125)
    >>> images = jnp.zeros((2, 32, 32, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
    >>> logits.shape
    (2, 10)
"""

from __future__ import annotations

import difflib
import math
from typing import get_args

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from train.models import chain, convnext, layers, resnet, vit
from train.models.blocks import Activation, Family, Norm, Style

FAMILIES = (chain.FAMILY, resnet.FAMILY, convnext.FAMILY, vit.FAMILY)

MODELS: dict[str, Family] = {name: family for family in FAMILIES for name in family.architectures}
"""The family of every network, by the network's name."""

_LARGE = 128
"""Side in pixels from which on the residual networks in their CIFAR form are advised against."""


def create_model(
    name: str,
    *,
    num_classes: int,
    width: float = 1.0,
    norm: Norm | None = None,
    activation: Activation | None = None,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
    implementation: layers.Implementation = "auto",
    remat: bool = False,
) -> nn.Module:
    """Returns the network of that name.

    The VGGs and ConvNeXts need images of at least 32x32 pixels, ``"small-cnn"`` 8x8; the vision transformers need sides
    that their patches divide; any channel count.

    Args:
        name: One of `MODELS`.
        num_classes: Number of logits.
        width: Factor on all channel counts, which are rounded to a multiple of 8, at least 8.
        norm: ``"batch"``, ``"group"`` or ``"layer"``, if the network can have it; None for its own.
        activation: ``"relu"``, ``"gelu"``, ``"silu"`` or ``"softplus"``; None for the network's own.
        dropout: Probability in [0, 1) with which a feature before the last linear layer is dropped in training.
        stochastic_depth: Probability in [0, 1) with which the last residual branch is dropped in training. It grows
            linearly from 0 at the first branch.
        dtype: Compute dtype, for example bfloat16; parameters, statistics and logits stay float32.
        axis_name: With batch norm, the ``pmap`` axis over which to synchronize the statistics. Sharded ``jit``
            needs none: there the batch is one array.
        implementation: ``"lax"``, ``"matmul"``, or ``"auto"``: matmul on a CPU, lax elsewhere, decided when traced.
            To compile on a CPU host for another device, name it.
        remat: Recompute each stage in the backward pass instead of storing its activations.

    Returns:
        A Linen module called as ``model.apply(variables, images, train=...)``. With dropout or stochastic depth, it
        also takes ``keys=...`` in training, one random key per example.

    Raises:
        ValueError: an argument is not among the values it may have.
    """
    _check_choice("name", name, tuple(MODELS))
    family = MODELS[name]
    norm = family.norms[0] if norm is None else norm
    activation = family.activation if activation is None else activation
    _check_choice("norm", norm, get_args(Norm))
    _check_choice("activation", activation, get_args(Activation))
    _check_choice("implementation", implementation, get_args(layers.Implementation))
    if norm not in family.norms:
        having = [other for other in FAMILIES if norm in other.norms]
        raise ValueError(f"{name} has no {norm} norm: norm must be {' or '.join(family.norms)}{_others(having)}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if not 0 < width < math.inf:
        raise ValueError(f"width must be positive and finite, got {width}")
    for argument, rate in (("dropout", dropout), ("stochastic_depth", stochastic_depth)):
        if not 0 <= rate < 1:
            raise ValueError(f"{argument} must be in [0, 1), got {rate}")
    if stochastic_depth and not family.residual:
        having = [other for other in FAMILIES if other.residual]
        raise ValueError(f"stochastic_depth needs residual branches, which {name} does not have{_others(having)}")
    style = Style(norm, activation, dtype, axis_name, implementation, dropout, stochastic_depth)
    return family.module(family.architectures[name], num_classes, width, style, remat)


def advice(name: str, side: int) -> str | None:
    """What to train instead of a network whose maps are too large on images of this side; None where it fits."""
    family = MODELS.get(name)
    if family is not resnet.FAMILY or family.architectures[name].for_large_images or side < _LARGE:
        return None
    other = f"{name}-imagenet" if f"{name}-imagenet" in MODELS else "resnet-18-imagenet"
    return (
        f"{name} is in its CIFAR form and keeps {side} x {side} pixels after the first layer, at 16 times the time and "
        f"memory of the ImageNet form: --model.name {other} shrinks them first"
    )


def _others(families: list[Family]) -> str:
    """One network of each family, to end an error about what a network does not have; empty where there are none."""
    return "; " * bool(families) + " or ".join(f"{next(iter(one.architectures))} has it" for one in families)


def _check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value in choices:
        return
    nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f": did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"{argument} must be one of {', '.join(choices)}, got {value!r}{hint}")
