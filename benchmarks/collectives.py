"""The collective operations of a compiled program, read from its text."""

from __future__ import annotations

import re

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_FUSED = "all-reduce-scatter"
"""How the TPU compiler names a computation in which an all-reduce keeps one part: a reduce-scatter of the whole."""


def collectives(program: str, *, trips: int = 1) -> list[tuple[str, int]]:
    """The collective operations of a compiled program, each with the bytes of its results.

    Args:
        program: its text.
        trips: turns of its loops; operations in the body of a loop count as often.
    """
    found, bodies, computation = [], set(), ""
    for line in program.splitlines():
        if heading := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            computation = heading.group(1)
        bodies.update(re.findall(r" while\(.*body=%?([\w.-]+)", line))
        for shape, name in re.findall(rf"= (\(.*?\)|\S+) ({'|'.join(COLLECTIVES)})(?:-start)?\(", line):
            size = sum(_bytes(kind, sizes) for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape))
            found.append((computation, "reduce-scatter" if computation.startswith(_FUSED) else name, size))
    return [(name, size) for computation, name, size in found for _ in range(trips if computation in bodies else 1)]


def _bytes(kind: str, sizes: str) -> int:
    width = 1 if kind == "pred" else int(re.sub(r"\D*(\d+).*", r"\1", kind)) // 8
    return width * int(np.prod([int(size) for size in sizes.split(",") if size], dtype=np.int64))
