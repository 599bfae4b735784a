"""Image classifiers in Flax Linen: one file a family, one entry a network in `MODELS`.

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
from collections.abc import Callable
from functools import partial
from typing import get_args

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from train.models import chain, layers, resnet
from train.models.blocks import Norm, Style

MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(chain.Chain, name) for name in chain.STAGES},
    **{name: partial(resnet.ResNet, name) for name in resnet.STAGES},
}
"""Factories by name: ``(num_classes, width, style, remat) -> module``."""


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
    """Returns the network of that name.

    The VGGs need images of at least 32x32 pixels, ``"small-cnn"`` 8x8; any channel count.

    Args:
        name: One of `MODELS`.
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
    _check_choice("name", name, tuple(MODELS))
    _check_choice("norm", norm, get_args(Norm))
    _check_choice("implementation", implementation, get_args(layers.Implementation))
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if not 0 < width < math.inf:
        raise ValueError(f"width must be positive and finite, got {width}")
    style = Style(norm, dtype, axis_name, implementation)
    return MODELS[name](num_classes, width, style, remat)


def _check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value in choices:
        return
    nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f": did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"{argument} must be one of {', '.join(choices)}, got {value!r}{hint}")
