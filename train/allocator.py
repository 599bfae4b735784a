"""The C library's allocator, told to keep what XLA frees.

On a CPU, XLA takes the temporary memory of a program from the C library at every call and gives it back at the end.
glibc returns blocks of more than a few MB to the system, which hands them out as fresh pages, a fault and a zeroing
each, in the next step: half the time of a small network's step. An accelerator's memory is not concerned.
"""

from __future__ import annotations

import ctypes
import os

# malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX. Without a map for every large block, without giving back the
# heap's end, and without heaps for single threads, for these cannot hold large blocks.
_SETTINGS = {-1: -1, -4: 0, -8: 1}

TUNABLES = "glibc.malloc.trim_threshold=18446744073709551615:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1"
"""The same settings for another program, as the value of `GLIBC_TUNABLES`."""


def keep_freed() -> bool:
    """Makes this process keep freed memory for its next step; call it before the first computation.

    Its memory then stays at the peak until it ends, and compiling takes a quarter longer, for its threads share one
    heap: this is for programs that run many times. Whoever has set `GLIBC_TUNABLES` or a variable of malloc's for
    himself is left alone.

    Returns:
        Whether it was done: the C library may be another one.
    """
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    return mallopt is not None and all(mallopt(*setting) for setting in _SETTINGS.items())
