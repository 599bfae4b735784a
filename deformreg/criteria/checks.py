"""Checks of a model's outputs and of their labels, for the criteria other than classification."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deformreg import _checks


def usable(logits: Any) -> Any:
    """bool[n, ...]: whether logits along the last axis predict: none is NaN or +inf, and one is finite.

    A logit of -inf says "never this class", as models write that mask classes out. The logits may be of NumPy or JAX.
    """
    # Comparisons, because both are false for NaN.
    return (logits < jnp.inf).all(axis=-1) & (logits > -jnp.inf).any(axis=-1)


def outputs(value: Any, count: int, name: str, shape: str, *, rank: int, last: int = 1) -> jax.Array:
    """Returns what a model returned for `count` images, or raises unless it is a floating array of at least a rank.

    Args:
        value: what the model returned.
        count: the number of images.
        name: of the model's function.
        shape: in words, for the message.
        rank: the smallest number of axes.
        last: the smallest size of the last axis.

    Returns:
        The outputs as an array.

    Raises:
        TypeError: not one array, or not of floating-point numbers.
        ValueError: another number of images, too few axes, or an empty or too short axis.
    """
    wanted = f"{name} must return floating-point outputs {shape} with n = {count}"
    if isinstance(value, (tuple, list, dict)) or not hasattr(value, "shape"):
        raise TypeError(f"{wanted}, got {_checks.described(value)}: return the one array that the criterion reads")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{wanted}, got {value.dtype}: return the values before any argmax or threshold")
    shape_found = tuple(value.shape)
    if len(shape_found) < rank or shape_found[0] != count or 0 in shape_found or shape_found[-1] < last:
        raise ValueError(f"{wanted}, got shape {shape_found}")
    return _checks.array(name, value)


def first_axis(name: str, value: Any, count: int) -> Any:
    """Returns `value` as an array with one entry per example, on the host if it is there, or raises."""
    given = np.asarray(_checks.native(value)) if isinstance(value, (np.ndarray, list, tuple)) else value
    if not hasattr(given, "shape") or given.dtype == object:
        raise TypeError(f"{name} must be an array, one entry per image, got {_checks.described(value)}")
    if given.ndim == 0 or given.shape[0] != count:
        raise ValueError(f"{name} must have one entry for each of {count} images, got shape {tuple(given.shape)}")
    return given


def _known(given: Any) -> np.ndarray[Any, Any] | None:
    """The values on the host, where a trace of something else does not trace their check; None if unknown here."""
    if isinstance(given, jax.core.Tracer) or not getattr(given, "is_fully_addressable", True):
        return None
    return np.asarray(given)


def like_outputs(name: str, value: Any, count: int, shape: tuple[int, ...] | None) -> Any:
    """As `first_axis`, and of the outputs' shape if that is known."""
    given = first_axis(name, value, count)
    if shape is not None and given.shape != shape:
        raise ValueError(f"{name} must have the outputs' shape {shape}, got {tuple(given.shape)}: reshape one of them")
    return given


def label_map(name: str, value: Any, count: int, shape: tuple[int, ...] | None, classes: int | None) -> Any:
    """Returns `value` as int[n, ...], a class or a negative number per pixel, or raises."""
    given = first_axis(name, value, count)
    if jnp.issubdtype(given.dtype, jnp.unsignedinteger):
        given = given.astype(np.int32)  # holds negative labels, which do not count
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, one class per pixel, got {given.dtype}: give {name}.astype(int)")
    if shape is not None and given.shape == (*shape, classes):
        raise ValueError(f"{name} must have shape {shape}, one class per pixel: give {name}.argmax(axis=-1)")
    if shape is not None and given.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, one class per pixel of the outputs, got {given.shape}")
    known = _known(given)
    if classes is not None and known is not None and known.size and known.max() >= classes:
        raise ValueError(
            f"{name} must be below {classes}, the number of classes, got {known.max()}: give pixels that do not "
            "count a negative label"
        )
    return given


def yes_or_no(name: str, value: Any, count: int, shape: tuple[int, ...] | None) -> Any:
    """Returns `value` as an array of zeros and ones of the outputs' shape, or raises."""
    given = like_outputs(name, value, count, shape)
    known = _known(given)
    if known is not None and not ((known == 0) | (known == 1)).all():
        raise ValueError(f"{name} must be 0 or 1 for each label, got others: for class indices use one-hot rows")
    return given


def numbers(name: str, value: Any, count: int, shape: tuple[int, ...] | None) -> Any:
    """Returns `value` as finite numbers of the outputs' shape, or raises; integers become float32."""
    given = like_outputs(name, value, count, shape)
    if not jnp.issubdtype(given.dtype, jnp.floating):
        if not jnp.issubdtype(given.dtype, jnp.integer):
            raise TypeError(f"{name} must be numbers, got {given.dtype}")
        given = given.astype(np.float32)
    known = _known(given)
    if known is not None and not np.isfinite(known.astype(np.float64)).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return given
