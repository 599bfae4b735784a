"""Noise laws over a family's parameters: pure functions ``(key, params) -> params``, for random starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from deformreg import _checks

Params = Any
Noise = Callable[[Array, Params], Params]
"""Draws random parameters shaped like the given ones, every example and component independently."""


def _elementwise(draw: Callable[[Array, Array], Array]) -> Noise:
    def noise(key: Array, params: Params) -> Params:
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(structure, [draw(k, leaf) for k, leaf in zip(keys, leaves, strict=True)])

    return noise


def gaussian(stddev: float) -> Noise:
    """Independent normal components of mean zero.

    Args:
        stddev: standard deviation in the unit of the parameters (pixels for a flow).

    Returns:
        The law.

    Raises:
        ValueError: `stddev` is negative.

    Example:
        >>> import jax
        >>> gaussian(0.1)(jax.random.key(0), jax.numpy.zeros((2, 8, 8, 2))).shape
        (2, 8, 8, 2)
    """
    _checks.non_negative("stddev", stddev)
    return _elementwise(lambda key, leaf: stddev * jax.random.normal(key, leaf.shape, leaf.dtype))


def uniform(radius: float) -> Noise:
    """Independent components, uniform in [-radius, radius].

    Args:
        radius: in the unit of the parameters (pixels for a flow).

    Returns:
        The law.

    Raises:
        ValueError: `radius` is negative.

    Example:
        >>> import jax
        >>> draw = uniform(0.5)(jax.random.key(0), jax.numpy.zeros((2, 8, 8, 2)))
        >>> bool(abs(draw).max() <= 0.5)
        True
    """
    _checks.non_negative("radius", radius)
    return _elementwise(lambda key, leaf: radius * jax.random.uniform(key, leaf.shape, leaf.dtype, -1, 1))
