"""Argument checks at trace time: every message names the argument, what was expected and what was given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def floating(name: str, value: Any, *, rank: int | None = None, axes: str = "") -> jax.Array:
    """Returns `value` as a floating-point array of the given rank, or raises."""
    if isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"{name} must be an array, got {value!r}")
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be floating point, got {array.dtype}: convert first, for example {name}.astype(float32) / 255"
        )
    if rank is not None and array.ndim != rank:
        raise ValueError(f"{name} must have shape {axes}, got {array.shape}")
    return array


def images(value: Any, name: str = "images") -> jax.Array:
    """Returns `value` as float[n, h, w, c] with at least one pixel, or raises."""
    array = floating(name, value, rank=4, axes="[n, h, w, c]")
    if 0 in array.shape[1:]:
        raise ValueError(f"{name} must have at least one pixel and channel, got {array.shape}")
    return array


def images_on_host(value: Any) -> np.ndarray[Any, Any]:
    """Checks a whole data set as `images` does, without copying it to a device, where it might not fit."""
    if not isinstance(value, np.ndarray):
        return np.asarray(images(value))
    array = np.asarray(value)  # a memory map is a subclass
    checked = jax.eval_shape(images, array)
    return array.astype(checked.dtype, copy=False)


def flow_for(flow: Any, shape: tuple[int, ...], name: str = "flow") -> jax.Array:
    """Returns `flow` as float[n, h, w, 2] matching images of `shape`, or raises."""
    array = floating(name, flow)
    expected = (*shape[:3], 2)
    if array.shape != expected:
        raise ValueError(
            f"{name} must have shape {expected}, (dy, dx) in pixels for images of shape {shape}, got {array.shape}"
        )
    return array


def per_example(value: Any, count: int, name: str = "loss_fn") -> jax.Array:
    """Returns what a loss function returned as float[count], one loss per example, or raises."""
    array = jnp.asarray(value)
    if array.shape != (count,):
        raise ValueError(
            f"{name} must return one loss per example, shape ({count},), got shape "
            f"{array.shape}: leave out the mean or sum over the batch"
        )
    return array


def non_negative(name: str, value: Any) -> None:
    """Raises if a concrete number is negative or NaN; traced values pass."""
    if isinstance(value, jax.core.Tracer):
        return
    if not np.all(np.asarray(value) >= 0):  # inside a trace, jax.numpy would trace the comparison
        raise ValueError(f"{name} must be at least 0, got {value}")


def positive(name: str, value: Any) -> None:
    """Raises if a concrete number is not above zero; traced values pass."""
    if isinstance(value, jax.core.Tracer):
        return
    if not np.all(np.asarray(value) > 0):
        raise ValueError(f"{name} must be above 0, got {value}")


def count(name: str, value: Any, *, minimum: int = 1) -> int:
    """Returns `value` as a Python integer of at least `minimum`, or raises."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = int(value.__index__())
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    return number


def choice(name: str, value: Any, options: Iterable[str]) -> None:
    """Raises unless `value` is one of `options`."""
    options = tuple(options)
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
