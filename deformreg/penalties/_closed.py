"""Loss functions with their constants as arguments, so that a rule of differentiation can name them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core as jax_core

from deformreg._arrays import aligned
from deformreg.penalties.exact import LossFn


def closed(function: LossFn, images: Array) -> tuple[Callable[..., Any], list[Any], Array]:
    """Returns `function` as ``(images, constants) -> result``, the arrays it closed over (the constants), and the
    images, spread over devices as their losses are."""
    traced, shape = jax.make_jaxpr(function, return_shape=True)(images)
    if (spread := aligned(images, jax.tree.leaves(shape)[0])) is not images:
        return closed(function, spread)

    def apply(images: Array, constants: Sequence[Any]) -> Any:
        leaves = jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(traced.jaxpr, constants))(images)
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return apply, traced.consts, images


def of_floating(
    loss_fn: LossFn, constants: Sequence[Any]
) -> tuple[Callable[..., list[Array]], list[Array], Callable[[Sequence[Array]], list[Any]]]:
    """Returns `loss_fn` as a function of images and its floating constants, these constants, and a function that puts
    their cotangents back among those of all constants."""
    floating = [index for index, leaf in enumerate(constants) if _has_derivative(leaf)]

    def evaluate(images: Array, *leaves: Array) -> list[Array]:
        replaced = dict(zip(floating, leaves, strict=True))
        return differentiable(loss_fn(images, [replaced.get(index, leaf) for index, leaf in enumerate(constants)]))

    def restore(cotangents: Sequence[Array]) -> list[Any]:
        found = dict(zip(floating, cotangents, strict=True))
        return [found.get(index) for index in range(len(constants))]

    return evaluate, [constants[index] for index in floating], restore


def differentiable(result: Any) -> list[Array]:
    """The floating leaves of a loss function's result; the losses come first."""
    return [leaf for leaf in jax.tree.leaves(result) if _has_derivative(leaf)]


def _has_derivative(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))
