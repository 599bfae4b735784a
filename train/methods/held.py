"""Batch statistics as constants of an inner gradient: a penalty per image, in the one pass that the loss takes.

With batch normalization, the gradient of the losses with respect to the images also goes through the batch's mean and
variance, so that examples interact, and its derivative reads the network's activations more often: on memory-bound
accelerators a step with the exact penalty then takes 2.7 times a standard step, although it computes twice as much.
Here the gradient holds the statistics, as in evaluation, where they are numbers. The loss, and the derivative of loss
and penalty with respect to the parameters, still go through them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from train.errors import ConfigError


@jax.custom_vjp
def _with_slope(features: Array, slope: Array, normalized: Array) -> Array:
    """Returns `normalized`, whose first derivative is `slope` with respect to `features` and 0 otherwise.

    JAX takes this rule where it differentiates first, for the inner gradient. The outer derivative sees what that left:
    `normalized` and `slope` as functions of everything.
    """
    return normalized


def _with_slope_forward(features: Array, slope: Array, normalized: Array) -> tuple[Array, tuple[Array, Array]]:
    return normalized, (slope, jnp.zeros(0, features.dtype))


def _with_slope_backward(kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, None, None]:
    slope, like = kept
    return (slope * cotangent).astype(like.dtype), None, None


_with_slope.defvjp(_with_slope_forward, _with_slope_backward)


@contextmanager
def held_statistics() -> Iterator[list[nn.BatchNorm]]:
    """Within it, Flax's batch normalization in training holds its statistics in the gradient that is taken first.

    Differentiate twice: a single gradient of what is called within it would miss the statistics.

    Yields:
        The layers that were called within it and hold their statistics.

    Raises:
        ConfigError: a layer that normalizes another axis than the last, or only a part of its batch.
    """
    layers: list[nn.BatchNorm] = []
    with nn.intercept_methods(partial(_hold, layers)):
        yield layers


def _hold(
    layers: list[nn.BatchNorm],
    call: Callable[..., Any],
    args: Any,
    kwargs: Any,
    context: nn.module.InterceptorContext,
) -> Any:
    result, layer = call(*args, **kwargs), context.module
    if not isinstance(layer, nn.BatchNorm) or context.method_name != "__call__":
        return result
    features: Array = args[0] if args else kwargs["x"]
    given = kwargs.get("use_running_average", args[1] if len(args) > 1 else None)
    if layer.use_running_average or given:
        return result
    if layer.axis not in (-1, features.ndim - 1) or kwargs.get("mask") is not None:
        raise ConfigError("--method.statistics held needs batch normalization over the last axis and without a mask")
    layers.append(layer)
    wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    axes = tuple(range(features.ndim - 1))
    # As Flax computes them, so that the compiler finds the same sums.
    moments = jnp.stack([jnp.mean(wide, axes), jnp.mean(jax.lax.square(wide), axes)])
    if layer.axis_name is not None:
        moments = jax.lax.pmean(moments, layer.axis_name, axis_index_groups=layer.axis_index_groups)
    mean, mean_of_squares = moments
    slope = jax.lax.rsqrt(jnp.maximum(0.0, mean_of_squares - jax.lax.square(mean)) + layer.epsilon)
    if layer.use_scale:
        slope *= layer.variables["params"]["scale"]
    return _with_slope(features, slope, result)
