"""The C library's allocator, told to keep what XLA frees.

On a CPU, XLA takes the temporary memory of a program from the C library at every call and gives it back at the end.
glibc returns large blocks to the system, which hands them out as fresh pages, a fault and a zeroing each, in the next
step: up to half the time of a small network's step. An accelerator's memory is not concerned.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os

# malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX. Without a map for every large block, without giving back the
# heap's end, and without heaps for single threads, for these cannot hold large blocks.
_SETTINGS = {-1: -1, -4: 0, -8: 1}

TUNABLES = "glibc.malloc.trim_threshold=18446744073709551615:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1"
"""The same settings for another program, as the value of `GLIBC_TUNABLES` that it is started with."""


def keep_freed() -> bool:
    """Makes this process keep freed memory for its next step; call it before JAX or NumPy is imported.

    Threads that have a heap of their own by then keep it. The process's memory stays at its peak until it ends, and
    compiling takes longer (a quarter, measured), for all threads share one heap: this is for programs that run many
    times. Left alone are processes with `GLIBC_TUNABLES` or a variable of malloc's set, and those with an
    accelerator, whose host threads gain nothing.

    Returns:
        Whether it was done; never with another C library than glibc.
    """
    if is_chosen() or _has_accelerator():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    return mallopt is not None and all(mallopt(*setting) for setting in _SETTINGS.items())


def is_chosen() -> bool:
    """Whether the environment says already how malloc shall behave."""
    return any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)


def _has_accelerator() -> bool:
    """Whether JAX, which is not imported yet, has a plugin for one and may use it."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    return bool(importlib.metadata.entry_points(group="jax_plugins")) or importlib.util.find_spec("libtpu") is not None
