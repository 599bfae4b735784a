"""Argument checks at trace time: every message names the argument, what was expected and what was given."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")


def described(value: Any) -> str:
    """Says in a few words what was given: an array's type and shape, a function's name, else a short repr."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return f"a {type(value).__name__}"
    if isinstance(value, (tuple, list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    text = f"the function {value.__name__}" if callable(value) and hasattr(value, "__name__") else repr(value)
    first = text.splitlines()[0] if text else type(value).__name__
    return first if len(first) <= 60 else f"a {type(value).__name__}"


def native(value: Any) -> Any:
    """Returns an array in the byte order of this machine, the only one that JAX takes; other values unchanged."""
    if isinstance(value, np.ndarray) and not value.dtype.isnative:
        return value.astype(value.dtype.newbyteorder("="))
    return value


def array(name: str, value: Any) -> jax.Array:
    """Returns `value` as an array, or raises."""
    if isinstance(value, (str, bytes, dict)) or value is None:
        raise TypeError(f"{name} must be an array, got {described(value)}")
    try:
        return jnp.asarray(native(value))
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an array of numbers, got {described(value)}") from None


def floating(name: str, value: Any, *, rank: int | None = None, axes: str = "") -> jax.Array:
    """Returns `value` as a floating-point array of the given rank, or raises."""
    checked = array(name, value)
    if not jnp.issubdtype(checked.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be floating point, got {checked.dtype}: convert first, for example "
            f"{name}.astype(float32)" + (" / 255" if name == "images" else "")
        )
    if rank is not None and checked.ndim != rank:
        raise ValueError(f"{name} must have shape {axes}, got {checked.shape}")
    return checked


def images(value: Any, name: str = "images") -> jax.Array:
    """Returns `value` as float[n, h, w, c], signals [n, t, c] or volumes [n, d, h, w, c], or raises.

    There must be at least one pixel.
    """
    checked = floating(name, value)
    if not 3 <= checked.ndim <= 5:
        raise ValueError(
            f"{name} must have shape [n, h, w, c] (signals [n, t, c], volumes [n, d, h, w, c]), got {checked.shape}"
        )
    if 0 in checked.shape[1:]:
        raise ValueError(f"{name} must have at least one pixel and channel, got {checked.shape}")
    return checked


def at_least_one(shape: tuple[int, ...]) -> None:
    """Raises if images of `shape` are none."""
    if not shape[0]:
        raise ValueError(f"images must hold at least one example, got shape {shape}")


def images_on_host(value: Any) -> np.ndarray[Any, Any]:
    """Checks a whole data set as `images` does, without copying it to a device, where it might not fit."""
    if not isinstance(value, np.ndarray):
        return np.asarray(images(value))
    data = np.asarray(native(value))  # a memory map is a subclass
    if data.dtype.kind not in "biufcV":  # V: the 16-bit types that NumPy lacks
        raise TypeError(f"images must be an array of numbers, got {described(data)}")
    checked = jax.eval_shape(images, data)
    return data.astype(checked.dtype, copy=False)


def flow(value: Any) -> jax.Array:
    """Returns a flow as an array, or raises."""
    checked = floating("flow", value)
    if not 3 <= checked.ndim <= 5 or checked.shape[-1] != checked.ndim - 2:
        raise ValueError(
            f"flow must have shape [n, h, w, 2] (signals [n, t, 1], volumes [n, d, h, w, 3]), got {checked.shape}"
        )
    return checked


def flow_for(flow: Any, shape: tuple[int, ...], name: str = "flow") -> jax.Array:
    """Returns `flow` as a flow for images of `shape`, one component per spatial axis, or raises."""
    checked = floating(name, flow)
    expected = flow_shape(shape)
    if checked.shape != expected:
        components = {1: "displacements", 2: "(dy, dx)", 3: "(dz, dy, dx)"}[expected[-1]]
        one = ": for one image give images[None]" if checked.shape == (*shape[:-1], 2) and len(shape) == 3 else ""
        raise ValueError(
            f"{name} must have shape {expected}, {components} in pixels for images of shape {shape}, "
            f"got {checked.shape}{one}"
        )
    return checked


def flow_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a flow for images of `shape`: one component per spatial axis."""
    return (*shape[:-1], len(shape) - 2)


def per_example(value: Any, count: int, name: str = "loss_fn") -> jax.Array:
    """Returns what a loss function returned as float[count], one loss per example, or raises."""
    if isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must return an array, one loss per example, got {described(value)}")
    losses = array(f"{name}'s result", value)
    if losses.shape != (count,):
        raise ValueError(
            f"{name} must return one loss per example, shape ({count},), got shape "
            f"{losses.shape}: leave out the mean or sum over the batch"
        )
    return losses


def logits(value: Any, count: int, name: str = "logits_fn") -> jax.Array:
    """Returns what a model returned for `count` images as float[count, classes] with two classes or more, or raises."""
    wanted = f"{name} must return logits, floating point of shape ({count}, classes)"
    if isinstance(value, (tuple, list, dict)):
        raise TypeError(f"{wanted}, got {described(value)}: return the array of logits alone")
    if value is None or not hasattr(value, "shape"):
        raise TypeError(f"{wanted}, got {described(value)}")
    if value.shape in ((count,), (count, 1)):
        raise ValueError(
            f"{wanted}, got one per image, shape {value.shape}: for two classes return "
            "jnp.stack([jnp.zeros_like(logit), logit], axis=1)"
        )
    if len(value.shape) != 2 or value.shape[0] != count or value.shape[1] < 2:
        raise ValueError(f"{wanted}, got shape {tuple(value.shape)}")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{wanted}, got {value.dtype}")
    return array(name, value)


def not_probabilities(name: str, value: jax.Array) -> None:
    """Warns if known values are not negative and sum to one in every row; values of 0 and 1 alone pass."""
    if isinstance(value, jax.core.Tracer) or not value.is_fully_addressable or len(value) < 2:
        return
    given = np.asarray(value, np.float64)
    # The remainder comes last: that of an infinity would be a warning of NumPy's.
    if (given >= 0).all() and np.abs(given.sum(axis=1) - 1).max() < 1e-5 and (given % 1 != 0).any():
        warnings.warn(
            f"{name} look like probabilities, which are not negative and sum to one: leave out the softmax",
            stacklevel=4,
        )


def class_indices(name: str, value: Any, count: int, *, classes: int | None = None) -> jax.Array:
    """Returns `value` as int[count] in [0, classes), or raises; of traced values only type and shape are checked."""
    known = not isinstance(value, jax.core.Tracer) and getattr(value, "is_fully_addressable", True)
    # On the host, before JAX keeps only the lower 32 bits.
    given = np.asarray(native(value)) if known and not isinstance(value, dict) and value is not None else value
    if known and getattr(given, "dtype", np.dtype(object)).kind == "O":
        raise TypeError(f"{name} must be integers of shape ({count},), one class per image, got {described(value)}")
    if given.shape == (count, 1) or (given.ndim == 2 and given.shape[0] == count):
        how = "[:, 0]" if given.shape[1] == 1 else ".argmax(axis=1)"
        raise ValueError(f"{name} must have shape ({count},), one class per image, got {given.shape}: give {name}{how}")
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {given.dtype}: give {name}.astype(int)")
    if given.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one class per image, got {given.shape}")
    if known:
        _in_classes(name, given, 2**31 if classes is None else classes)
    return jnp.asarray(given)


def probabilities(name: str, value: Any, shape: tuple[int, ...]) -> jax.Array:
    """Returns `value` as probabilities float[n, classes], or raises; of traced values only the shape is checked."""
    checked = floating(name, value)
    if checked.shape != shape:
        raise ValueError(f"{name} must have the logits' shape {shape}, one probability per class, got {checked.shape}")
    if isinstance(value, jax.core.Tracer) or not getattr(value, "is_fully_addressable", True):
        return checked
    rows = np.asarray(value, np.float64)
    (bad,) = np.nonzero(~((rows >= 0).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) < 0.01)))
    if bad.size:
        row = rows[bad[0]]
        got = f"{row.min():.6g}" if row.min() < 0 else f"the sum {row.sum():.6g}"
        raise ValueError(f"{name} must be probabilities of at least 0 that sum to 1, got {got} at index {bad[0]}")
    return checked


def _in_classes(name: str, given: np.ndarray[Any, Any], classes: int) -> None:
    (bad,) = np.nonzero((given < 0) | (given >= classes))
    if bad.size == 0:
        return
    shifted = ": they count from 1, subtract 1" if given.min() == 1 and given.max() == classes else ""
    raise ValueError(f"{name} must be in [0, {classes}), got {given[bad[0]]} at index {bad[0]}{shifted}")


def instance(name: str, value: Any, kind: type[T], example: str) -> T:
    """Returns `value` if it is of a kind, or raises."""
    if isinstance(value, kind):
        return value
    called = f": call it, {value.__name__}(...)" if callable(value) and hasattr(value, "__name__") else ""
    raise TypeError(f"{name} must be of type {kind.__name__}, for example {example}, got {described(value)}{called}")


def function(name: str, value: Any) -> None:
    """Raises unless `value` can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {described(value)}")


def called(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a user's function; raises with a remedy if JAX cannot trace it, or a Flax NNX model changes its state."""
    try:
        return function(*arguments)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            f"{name} must compute with jax.numpy, got one that asks for NumPy arrays: for a model of NumPy or PyTorch "
            "use deformreg.interop.from_numpy or from_torch"
        ) from error
    except jax.errors.ConcretizationTypeError as error:
        raise TypeError(
            f"{name} must be a function that jax.jit can trace, got one that needs the values of an array for float(), "
            "int() or if: use jax.numpy.where, or jax.lax.cond"
        ) from error
    except Exception as error:
        if type(error).__name__ != "TraceContextError":  # by name, because the library does not import Flax
            raise
        raise ValueError(
            f"{name} must not change the model's state: call model.eval() first; to train batch statistics, nnx.split "
            "the model outside, nnx.merge it inside with copy=True, and return its new state with has_aux=True"
        ) from error


def key(value: Any, *, count: int | None = None) -> jax.Array:
    """Returns a JAX random key, of the new kind or of the old one (uint32[2]), or raises.

    With a `count`, an array of that many keys will do. Keys of JAX's implementations ``rbg`` and ``unsafe_rbg`` become
    keys of its default one: under `vmap` they would draw by the first key alone, for all examples.
    """
    typed: bool = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if typed and (value.ndim == 0 or (count is not None and value.shape == (count,))):
        random_key: jax.Array = value
        is_rbg = str(jax.random.key_impl(random_key)) in ("rbg", "unsafe_rbg")
        return _default_key(jax.random.key_data(random_key)) if is_rbg else random_key
    raw = isinstance(value, (jax.Array, np.ndarray)) and value.dtype == np.uint32 and value.ndim == 1
    if not typed and raw and len(value) > 1:
        return _default_key(jnp.asarray(value)) if len(value) == 4 else jnp.asarray(value)
    several = "" if count is None else f" (or {count} of them)"
    raise TypeError(f"key must be a JAX random key{several}, for example jax.random.key(0), got {described(value)}")


def _default_key(data: jax.Array) -> jax.Array:
    found: jax.Array = jax.random.wrap_key_data(data[..., :2], impl="threefry2x32")
    return found


def image_range(value: Any) -> tuple[float, float]:
    """Returns `value` as (low, high), or raises."""
    if isinstance(value, (str, bytes)):
        raise ValueError(f"image_range must be (low, high), got {described(value)}")
    try:
        low, high = (float(end) for end in value)
    except (TypeError, ValueError):
        raise ValueError(f"image_range must be (low, high), got {described(value)}") from None
    if not low < high:
        raise ValueError(f"image_range must be (low, high) with low < high, got {(low, high)}")
    return low, high


def range_slack(image_range: tuple[float, float], dtype: Any) -> float:
    """How far images of a type may leave their range by rounding."""
    low, high = image_range
    if not jnp.issubdtype(dtype, jnp.floating):
        return 0.0
    step = float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]
    return max(1e-5 * (high - low), step / 2 * max(abs(low), abs(high)))


def in_range(name: str, value: Any, image_range: tuple[float, float]) -> None:
    """Raises if known values leave a range by more than rounding."""
    if isinstance(value, jax.core.Tracer) or not getattr(value, "is_fully_addressable", True) or not np.size(value):
        return
    known = np.asarray(value)  # inside a trace, jax.numpy would trace the extremes
    low, high = float(known.min()), float(known.max())
    slack = range_slack(image_range, known.dtype)
    if low < image_range[0] - slack or high > image_range[1] + slack:
        raise ValueError(
            f"{name} must lie in image_range {image_range}, got values from {low:g} to {high:g}: scale them, or name "
            "the range that they have"
        )


def alpha(value: Any) -> None:
    """Raises unless `value` is a probability of error for which SciPy's quantiles are right."""
    if not 0 < value < 1:
        raise ValueError(f"alpha must be in (0, 1), got {value}")
    # From about 1e-285 down, `scipy.special.betaincinv` is wrong or NaN.
    if value < 1e-250:
        raise ValueError(f"alpha must be at least 1e-250, got {value}: SciPy has no exact quantiles below")


def non_negative(name: str, value: Any) -> None:
    """Raises if a concrete number is negative, infinite or NaN; traced values pass."""
    _number(name, value, "at least 0", lambda number: number >= 0)


def radius(name: str, value: Any) -> None:
    """Raises unless a concrete radius is one number, finite and at least 0; traced values pass."""
    non_negative(name, value)
    if np.ndim(value):
        raise ValueError(f"{name} must be one number, got {described(value)}")


def increasing(name: str, values: Iterable[Any], *, from_zero: bool) -> tuple[float, ...]:
    """Returns one or more finite numbers that increase, from 0 or from above 0; raises for others."""
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise TypeError(f"{name} must be a list of numbers, got {described(values)}")
    numbers = tuple(float(value) for value in values)
    rising = bool(numbers) and all(low < high for low, high in pairwise(numbers))
    if not rising or not (numbers[0] >= 0 if from_zero else numbers[0] > 0) or not np.isfinite(numbers[-1]):
        raise ValueError(f"{name} must increase from {'at least' if from_zero else 'above'} 0, got {list(numbers)}")
    return numbers


def positive(name: str, value: Any) -> None:
    """Raises if a concrete number is not above zero, or infinite; traced values pass."""
    _number(name, value, "above 0", lambda number: number > 0)


def _number(name: str, value: Any, wanted: str, holds: Callable[[Any], Any]) -> None:
    if isinstance(value, jax.core.Tracer):
        return
    number = np.asarray(value)  # inside a trace, jax.numpy would trace the comparison
    if number.dtype.kind not in "iufV":
        raise TypeError(f"{name} must be a number, got {described(value)}")
    number = number.astype(np.float64)
    if not np.all(holds(number)):
        raise ValueError(f"{name} must be {wanted}, got {value}")
    if not np.all(np.isfinite(number)):
        raise ValueError(f"{name} must be finite, got {value}")


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
