"""A model that runs on the host as a JAX function from images to logits."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.buffer_callback import buffer_callback

from deformreg import _checks

HostArray = np.ndarray[Any, Any]


class ModelError(RuntimeError):
    """A model on the host failed, or returned something else than logits."""


class NoGradients(TypeError):
    """A derivative was asked of a model that has none."""


class HostModel(NamedTuple):
    """What `logits_function` needs of a model; images and logits are NumPy arrays.

    Attributes:
        classes: ``shape -> count``: the number of classes for images of a shape; raises if the model cannot take them.
        logits: ``images -> logits[n, classes]``.
        linearize: ``images -> (logits, token)``; the token tells `pull_back` what was computed here.
        pull_back: ``(images, token, cotangents[n, classes]) -> cotangents[n, h, w, c]``; the token is an array.
        no_gradients: ``shape -> reason``: why the model has no derivatives, or None if it has.
    """

    classes: Callable[[tuple[int, ...]], int]
    logits: Callable[[HostArray], HostArray]
    linearize: Callable[[HostArray], tuple[HostArray, int]]
    pull_back: Callable[[HostArray, HostArray, HostArray], HostArray]
    no_gradients: Callable[[tuple[int, ...]], str | None]


def logits_function(model: HostModel) -> Callable[[Array], Array]:
    """A JAX function that calls a model on the host, inside and outside `jit`.

    Args:
        model: the model.

    Returns:
        ``images -> logits[n, classes]``, float32 or wider. A derivative of it raises `NoGradients` if the model has
        none.
    """

    def logits_like(images: Array) -> jax.ShapeDtypeStruct:
        count = model.classes(images.shape)
        return jax.ShapeDtypeStruct((images.shape[0], count), jnp.promote_types(images.dtype, jnp.float32))

    @jax.custom_vjp
    def traced(images: Array) -> Array:
        logits: Array = _called_on_host(model.logits, logits_like(images), images)
        return logits

    def forward(images: Array) -> tuple[Array, tuple[Array, Array]]:
        reason = model.no_gradients(images.shape)
        if reason is not None:
            raise NoGradients(reason)
        result = (logits_like(images), jax.ShapeDtypeStruct((), jnp.int32))
        logits, token = _called_on_host(model.linearize, result, images)
        return logits, (images, token)

    def backward(saved: tuple[Array, Array], cotangents: Array) -> tuple[Array]:
        images, token = saved
        return (
            _called_on_host(
                model.pull_back, jax.ShapeDtypeStruct(images.shape, images.dtype), images, token, cotangents
            ),
        )

    traced.defvjp(forward, backward)

    def logits_fn(images: Array) -> Array:
        images = _checks.images(images)
        if isinstance(images, jax.core.Tracer):
            return traced(images)
        # Outside a trace an error reaches the caller as it is.
        like = logits_like(images)
        return jnp.asarray(model.logits(np.asarray(images)), like.dtype)

    return logits_fn


def _called_on_host(function: Callable[..., Any], result: Any, *arguments: Array) -> Any:
    """What a function of NumPy arrays returns, of the shapes and types of `result`; it has no second derivative."""

    def on_host(*arguments: Any) -> Any:
        # A copy: the model may keep its images for the derivative, longer than JAX keeps the memory.
        values = function(*(np.asarray(argument).copy() for argument in arguments))
        return jax.tree.map(lambda value, like: np.asarray(value, like.dtype), values, result)

    def into(context: Any, results: Any, *arguments: Any) -> None:
        del context
        jax.tree.map(lambda buffer, value: np.copyto(np.asarray(buffer), value), results, on_host(*arguments))

    # Under vmap the model is called once per batch: it may take no other batch size.
    once_each: Any = {"vmap_method": "sequential"}

    @jax.custom_vjp
    def first_order(*arguments: Array) -> Any:
        # `pure_callback` copies what the model gets on JAX's threads. On a processor these run the program that
        # waits for the model: with one core, or a model call on every device, the copy would wait forever.
        return jax.lax.platform_dependent(
            *arguments,
            cpu=buffer_callback(into, result, **once_each),
            default=partial(jax.pure_callback, on_host, result, **once_each),
        )

    first_order.defvjp(_no_second_derivative, _no_second_derivative)
    return first_order(*arguments)


def _no_second_derivative(*arguments: Any) -> NoReturn:
    del arguments
    raise NoGradients(
        "a model on the host has first derivatives only: attack and evaluate it, or compute penalties, but train it "
        "in its own framework"
    )


def in_batches(images: HostArray, batch_size: int | None) -> Iterator[tuple[HostArray, int]]:
    """Splits images into batches of one size; the last one is filled up with its own images.

    Args:
        images: [n, h, w, c].
        batch_size: None for one batch of all images.

    Returns:
        Batches, and the number of images in each that count.
    """
    size = batch_size or len(images)
    for first in range(0, len(images), max(size, 1)):
        batch = images[first : first + size]
        yield (batch if len(batch) == size else batch[np.arange(size) % len(batch)]), len(batch)


@contextmanager
def failures_of(what: str, images: HostArray) -> Iterator[None]:
    """Turns any error of a model into a `ModelError` of one line."""
    try:
        yield
    except (ModelError, NoGradients):
        raise
    except Exception as error:
        shape = tuple(images.shape)
        raise ModelError(f"{what} failed on images of shape {shape}: {type(error).__name__}: {_line(error)}") from error


def checked(what: str, logits: Any, count: int, classes: int | None) -> HostArray:
    """Returns what a model returned as float[count, classes], or raises a `ModelError`."""
    values = np.asarray(logits)
    if values.dtype.kind not in "iufV" or values.ndim != 2 or values.shape[0] != count:
        raise ModelError(f"{what} must return logits of shape ({count}, classes), got {_checks.described(values)}")
    if values.shape[1] != (classes or values.shape[1]) or values.shape[1] < 2:
        raise ModelError(f"{what} must return logits of {classes or 'two or more'} classes, got shape {values.shape}")
    return values


def _line(error: BaseException) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return text if len(text) <= 300 else text[:300] + "..."


@contextmanager
def model_errors() -> Iterator[None]:
    """Raises a model's error as it was, where JAX raises one that holds its traceback as text."""
    try:
        yield
    except ModelError:
        raise
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # one or the other, by the place where JAX notices it
        _, marker, message = str(error).rpartition(f"{ModelError.__name__}: ")
        if not marker:
            raise
        raise ModelError(message.splitlines()[0]) from None


def _is_not_ours(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[0] is ModelError)


# JAX logs the traceback of an error that it also raises.
logging.getLogger("jax._src.callback").addFilter(_is_not_ours)
