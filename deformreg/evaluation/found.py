"""What an attack has found so far: plain data to keep, to continue from, and to put together from several processes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import numpy as np

from deformreg.evaluation.data import HostArray


class Found(NamedTuple):
    """What an attack has found on the examples that it has finished. Entries of the others are False or zero.

    Attributes:
        finished: bool[n], the examples that need not be attacked again.
        claimed: bool[n], which of them the attack claims to break.
        broken: bool[n], which of these claims a fresh forward pass confirmed.
        calls: int64[n], model calls spent on each.
        norms: for every norm of the final field (or image difference), float[n]; zero where not broken.
        model_calls: rows computed, idle rows and the fresh check included.
        seconds: wall clock, without compiling.
        compile_seconds: wall clock of compiling.

    Example:
        >>> Found.nothing(3).finished.tolist()
        [False, False, False]
    """

    finished: HostArray
    claimed: HostArray
    broken: HostArray
    calls: HostArray
    norms: dict[str, HostArray]
    model_calls: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0

    @staticmethod
    def nothing(count: int) -> Found:
        """Nothing yet, on so many examples."""
        finished, claimed, broken = np.zeros((3, count), bool)
        return Found(finished, claimed, broken, np.zeros(count, np.int64), {})

    def after(self, earlier: Found) -> Found:
        """With what was found before, on other examples or on the same ones."""
        new = ~earlier.finished  # an example that both have finished counts once
        nothing = np.zeros(len(new))
        norms = {}
        for name in {**earlier.norms, **self.norms}:
            ours, theirs = self.norms.get(name, nothing), earlier.norms.get(name, nothing)
            norms[name] = np.where(new, ours, theirs).astype(np.result_type(*(
                found.norms[name].dtype for found in (self, earlier) if name in found.norms
            )))  # fmt: skip
        return Found(
            earlier.finished | self.finished,
            np.where(new, self.claimed, earlier.claimed),
            np.where(new, self.broken, earlier.broken),
            np.where(new, self.calls, earlier.calls),
            norms,
            earlier.model_calls + self.model_calls,
            earlier.seconds + self.seconds,
            earlier.compile_seconds + self.compile_seconds,
        )

    def summary(self) -> dict[str, dict[str, float]]:
        """The mean and the maximum of each norm over the broken examples."""
        if not self.broken.any():
            return {}
        over = {name: values[self.broken] for name, values in self.norms.items()}
        return {name: {"mean": float(values.mean()), "max": float(values.max())} for name, values in over.items()}


def together(parts: Iterable[Found]) -> Found:
    """Puts together what several processes have found at the same time, each on its share of the examples.

    Args:
        parts: one or more.

    Returns:
        What all have found; seconds are those of the slowest.

    Example:
        >>> import numpy as np
        >>> first, second = Found.nothing(3), Found.nothing(3)
        >>> first.finished[0] = second.finished[2] = True
        >>> together([first, second]).finished.tolist()
        [True, False, True]
    """
    parts = list(parts)
    return reduce(lambda earlier, part: part.after(earlier), parts)._replace(
        seconds=max(part.seconds for part in parts), compile_seconds=max(part.compile_seconds for part in parts)
    )
