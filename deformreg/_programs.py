"""Programs that XLA compiles fast: most of the time of a short evaluation is spent on compiling."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import jax

Function = TypeVar("Function", bound=Callable[..., Any])


def jitted(function: Function) -> Callable[[], Any]:
    """Jits a function for calls outside other jitted functions, with XLA's options for fast compiling.

    Args:
        function: its arguments are arrays and pytrees.

    Returns:
        A function without arguments that returns the jitted function, the same one each time. JAX starts its backend
        there, not here: `jax.distributed.initialize` must come before.

    Example:
        >>> import jax.numpy as jnp
        >>> double = jitted(lambda values: 2 * values)
        >>> double()(jnp.ones(2)).tolist()
        [2.0, 2.0]
    """
    return cache(lambda: jax.jit(function, compiler_options=_options()))


@cache
def _options() -> dict[str, bool]:
    """XLA's options for fast compiling on this backend, where it has them."""
    if jax.default_backend() != "cpu":
        return {}
    # XLA's newer code generator for the CPU takes twice as long to compile an attack, which then runs no faster.
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:  # this version of XLA does not know them
        return {}
    return options
